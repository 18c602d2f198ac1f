"""A misspelt name is answered with the nearest known one, wherever a name is taken."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from t2i_cli import known_names, prompts
from t2i_cli.backends.http.discovery import ServerInfo
from t2i_cli.backends.local import device
from t2i_cli.backends.local.device import Device
from t2i_cli.batch import options
from t2i_cli.cli.commands import models as models_command
from t2i_cli.errors import InputError, T2IError
from t2i_cli.models import catalog, schedulers
from t2i_cli.output import filenames
from t2i_cli.prompts import entries
from t2i_cli.request_fields import DIALECTS
from t2i_cli.server import responses
from t2i_cli.server.api.openai import GenerationBody
from t2i_cli.server.api.t2i import GenerateBody
from t2i_cli.server.schemas import ImageRequest
from t2i_cli.settings import schema, store
from t2i_cli.vertex import build, containers, inventory, machine_types
from t2i_cli.vertex.inventory import Inventory
from t2i_cli.vertex.location import Location


def body_error(body: type[BaseModel], value: object) -> None:
    """Raise what the server answers to a body."""
    try:
        body.model_validate(value)
    except ValidationError as error:
        raise responses.validation_error(error.errors()) from error


def server(models: list[str] | None) -> ServerInfo:
    return ServerInfo(url="http://h/v1", dialect=DIALECTS["openai"], models=models, facts={})


CPU = Device(name="cpu", kind="cpu", label="CPU")
TAKEN: dict[str, tuple[Callable[[str], object], str, str]] = {
    "model": (models_command._find_spec, "psotcard", "postcard"),
    "setting": (store.setting_named, "modle", "model"),
    "backend": (lambda n: store.resolve_setting("backend", n), "htpp", "http"),
    "dialect": (lambda n: store.resolve_setting("http_dialect", n), "opneai", "openai"),
    "memory": (lambda n: store.resolve_setting("memory", n), "LWO", "low"),
    "dtype": (lambda n: store.resolve_setting("dtype", n), "flaot16", "float16"),
    "setting of a format": (lambda n: store.resolve_setting("format", n), "pgn", "png"),
    "setting of a device": (lambda n: store.resolve_setting("device", n), "cdua", "cuda"),
    "device": (device.find_device, "cpuu", "cpu"),
    "dtype of a device": (
        lambda n: device.choose_dtype(CPU, n, transformer=False),
        "bfloat",
        "bfloat16",
    ),
    "scheduler": (lambda n: schedulers.find_scheduler(n, None), "eulr", "euler"),
    "flow scheduler": (lambda n: schedulers.find_scheduler(n, True), "Huen", "heun"),
    "format": (lambda n: filenames.parse_output("-", n), "pgn", "png"),
    "extension": (lambda n: filenames.parse_output(f"a.{n}", None), "pgn", "png"),
    "placeholder": (lambda n: filenames.parse_output(f"{{{n}}}.png", None), "sede", "seed"),
    "row field": (lambda n: entries.check_value(n, 1), "stepz", "steps"),
    "varied field": (lambda n: options.parse_vary([f"{n}=1"]), "stesp", "steps"),
    "input format": (lambda n: prompts.prompts_format("p", n), "josnl", "jsonl"),
    "body field": (lambda n: body_error(ImageRequest, {"prompt": "a", n: 1}), "Stepz", "steps"),
    "field of several": (
        lambda n: body_error(GenerateBody, {"requests": [{"prompt": "a", n: 1}]}),
        "widht",
        "width",
    ),
    "outer field": (lambda n: body_error(GenerateBody, {n: []}), "reqests", "requests"),
    "OpenAI's field": (
        lambda n: body_error(GenerationBody, {"prompt": "a", n: 1}),
        "output_fromat",
        "output_format",
    ),
    "server's model": (server(["flux-dev", "sdxl"]).model_name, "flux-dve", "flux-dev"),
    "serving": (containers.check_serving, "torchsevre", "torchserve"),
    "builder": (
        lambda n: build.plan_build(
            None, n, None, lambda: Location(project="gallery", region="us-central1")
        ),
        "dokcer",
        "docker",
    ),
    "machine": (
        lambda n: machine_types.choose_hardware(n, None, catalog.MODELS["sdxl"]),
        "g2standard-4",
        "g2-standard-4",
    ),
}
"""By what is named: who takes the name, a misspelt one, and what is meant."""


@pytest.mark.parametrize(("take", "name", "meant"), TAKEN.values(), ids=TAKEN)
def test_the_nearest_name_is_suggested(
    take: Callable[[str], object], name: str, meant: str, tmp_path: Path
) -> None:
    with pytest.raises(T2IError) as caught:
        take(name)
    said = f"{caught.value.message} {caught.value.hint}".lower()
    assert f"did you mean {meant}?" in said


@pytest.mark.parametrize(("take", "name", "meant"), TAKEN.values(), ids=TAKEN)
def test_a_name_that_is_near_none_has_no_suggestion(
    take: Callable[[str], object], name: str, meant: str
) -> None:
    for far in ("qqqqq", "q" * 10_000):
        with pytest.raises(T2IError) as caught:
            take(far)
        assert "did you mean" not in f"{caught.value.message} {caught.value.hint}".lower()


def test_names_that_are_none_or_one() -> None:
    assert known_names.closest_name("a", []) is None
    assert known_names.suggest_name("a", []) == ""
    assert known_names.name_choices("a", []) == "there is none."
    assert known_names.name_choices("a", ["xyz"]) == "use one of: xyz."
    assert known_names.name_choices("XYZZ", ["xyz"]) == "did you mean xyz?"
    assert known_names.closest_name("", ["xyz"]) is None
    assert schema.join_choices([]) == "nothing"
    assert schema.join_choices(["a"]) == "a"
    assert schema.join_choices(["a", "b", "c"]) == "a, b or c"
    for listed in (server([]), server(None)):
        with pytest.raises(T2IError):
            listed.model_name(None)
    with pytest.raises(T2IError, match="it has no model"):
        server([]).model_name("a")
    with pytest.raises(InputError) as caught:
        inventory.find_deployment(Inventory(), "a")
    assert caught.value.hint == "Of t2i's there is: none."


def test_a_servers_model_is_found_in_any_spelling() -> None:
    assert server(["sdxl", "other"]).model_name("SDXL") == "sdxl"
    # What the server calls it stays, and with it the ids of rows.
    assert server(["SDXL", "other"]).model_name("SDXL") == "SDXL"
    assert server(None).model_spec("SDXL").name == "SDXL"


IN_ONE_PROCESS = """
import contextlib, io, json, sys
from t2i_cli.cli import main as cli
for arguments in json.load(sys.stdin):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = cli._run(arguments)
    print(json.dumps([code, errors.getvalue()]))
"""
QUOTED = 't2i generate "a red star"'
USAGE: list[tuple[tuple[str, ...], str]] = [
    (("a", "red", "star"), QUOTED),
    (("a red star",), QUOTED),
    (("a", "red", "star", "-m", "postcard"), QUOTED),
    (("generate", "a", "red", "star"), QUOTED),
    (("generate", "-m", "postcard", "a", "red", "star"), QUOTED),
    (("generate", "-p", "a", "red", "star"), QUOTED),
    (("remote", "generate", "a", "red", "star"), 't2i remote generate "a red star"'),
    (("batch", "a red star"), QUOTED),
    (("batch", "a", "red", "star"), QUOTED),
    (("batch", "a red star", "--input-format", "txt"), QUOTED),
    (("batch", "a red star", "-m", "postcard", "--dry-run"), QUOTED),
    (('say "hi"',), "t2i generate 'say \"hi\"'"),
    (("batch", "prmopts.txt"), "Did you mean prompts.txt?"),
    (("batch", "sub/prmopts.txt"), "Cannot read 'sub/prmopts.txt': No such file or directory."),
    (("batch", "folder.txt"), "Cannot read 'folder.txt': it is a folder."),
    (("genrate", "a red star"), "Did you mean generate?"),
    (("models", "lsit"), "Did you mean list?"),
    (("models", "qqq"), "t2i models has no command 'qqq'."),
    (("models", "show", "stable", "diffusion"), "What has spaces is quoted."),
    (("remote", "stauts"), "Did you mean status?"),
    (("generate", "x", "--setps", "4"), "Did you mean --steps?"),
    (("generate", "x", "-Z"), "There is no option -Z."),
    (("-m", "postcard", "a red star"), "The command comes first"),
    (("generate", "x", "--steps"), "requires an argument"),
    (("inspect", ""), "IMAGE is empty."),
    (("inspect", "a.png", ""), "IMAGE is empty."),
    (("batch", ""), "FILE is empty."),
    (("batch", "prompts.txt", "-o", ""), "--output is empty."),
    (("generate", "x", "-o", ""), "--output is empty."),
    (("generate", "x", "-m", ""), "--model is empty."),
    (("generate", ""), "The prompt is empty."),
    (("models", "show", ""), "MODEL is empty."),
    (("models", "path", ""), "MODEL is empty."),
    (("config", "get", ""), "KEY is empty."),
    (("serve", "--api-key-file", ""), "--api-key-file is empty."),
    (("serve", "--uds", ""), "--uds is empty."),
]


def test_a_command_line_that_is_wrong_is_told_what_was_meant(
    t2i_env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a red star\n")
    (tmp_path / "folder.txt").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS],
        input=json.dumps([arguments for arguments, _ in USAGE]),
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (arguments, said), (code, errors) in zip(USAGE, answers, strict=True):
        assert code == 2, (arguments, errors)
        assert said in errors, (arguments, errors)
        assert errors.startswith("error: ")
        assert len(errors.splitlines()) <= 2, errors
