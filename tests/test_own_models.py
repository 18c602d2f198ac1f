"""A user's own models: `t2i models add`, their file, and requests that name one."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from threading import Event as Flag
from typing import Any

import httpx2
import pytest

from t2i_cli.backend import EncodedImage, GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.driver import run_backend
from t2i_cli.errors import T2IError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import user_catalog
from t2i_cli.models.own_models import DEFAULT_FIELDS, new_own_model
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.prompts.styles import StyleFile, expand_styles
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_adapters import Adapter, parse_loras
from t2i_cli.request_fields import FIELDS
from t2i_cli.vertex import containers
from t2i_cli.worker.answers import build_body
from t2i_cli.worker.backend import WorkerBackend
from tests import factories, tiny_models
from tests.conftest import T2I
from tests.fakes.hub import FakeHub, Repo
from tests.fakes.models import repository
from tests.fakes.serving import serving
from tests.fakes.stub_backend import StubBackend
from tests.in_process import run_in_process

SNOW = Path(__file__).parent / "adapters/snow.safetensors"
Command = Callable[..., CompletedProcess[str]]


@pytest.fixture
def command(t2i_env: dict[str, str]) -> Command:
    """Run a command line in this process, with a home of its own."""

    def run(*args: str | Path, **variables: str) -> CompletedProcess[str]:
        return run_in_process(*args, env=t2i_env | variables)

    return run


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's catalogue of this process, which is not there yet."""
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "config.toml"))
    return tmp_path / "models.toml"


def add(name: str, model: str, **values: Any) -> None:  # noqa: ANN401
    """Store an own model, unchecked."""
    entry = new_own_model(name, model, values, lora_dir=None)
    user_catalog.write_table(name, entry.to_table(), overwrite=True)


def resolved(model: str, *, lenient: bool = False, **values: Any) -> ResolvedRequest:  # noqa: ANN401
    """A request as this machine settles it."""
    request = build_request({"prompt": "a red star", "seed": 7, "model": model, **values})
    backend = LocalBackend(LocalOptions(device="cpu", offline=True))
    return resolve_request(request, backend.describe(request), lenient=lenient)


def told(call: Callable[[], object]) -> str:
    """What a refusal says, with its hint."""
    with pytest.raises(T2IError) as caught:
        call()
    return f"{caught.value.message} {caught.value.hint or ''}".strip()


def test_a_model_is_added_and_used_from_another_folder(
    command: Command, t2i: T2I, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "snow.safetensors").write_bytes(SNOW.read_bytes())
    monkeypatch.chdir(tmp_path)
    defaults = ("--steps", "3", "--scheduler", "DDIM", "--lora", "snow.safetensors:0.8")
    added = command("models", "add", "winter", "postcard", *defaults)
    assert (added.returncode, added.stdout) == (0, "winter\n"), added.stderr
    stored = home / "models.toml"
    assert f"it stands in {stored}." in added.stderr
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    made = t2i("generate", "a red star", "-m", "Winter", "-o", "a.png", cwd=elsewhere)
    assert made.returncode == 0, made.stderr
    record = json.loads(command("inspect", elsewhere / "a.png", "--json").stdout)
    request, lock = record["request"], record["lock"]
    assert (request["model"], request["steps"], request["scheduler"]) == ("postcard", 3, "ddim")
    assert request["loras"][0]["source"] == str(tmp_path / "snow.safetensors")
    assert (lock["model"], lock["own_name"]) == ("postcard", "winter")


def test_own_models_are_listed_shown_and_removed(command: Command) -> None:
    assert command("models", "add", "winter", "postcard", "--steps", "3").returncode == 0
    lines = command("models", "list").stdout.splitlines()
    assert lines[1].split() == ["winter", "Yours:", "postcard"]
    first, second, *_ = map(json.loads, command("models", "list", "--json").stdout.splitlines())
    assert first == {"name": "winter", "own": True, "model": "postcard", "defaults": {"steps": 3}}
    assert (second["name"], second["own"]) == ("postcard", False)
    shown = command("models", "show", "winter").stdout
    assert shown.startswith("name: winter\nmodel: postcard\nsteps: 3\n\nname: postcard\n")
    record = json.loads(command("models", "show", "winter", "--json").stdout)
    assert (record["name"], record["defaults"]) == ("winter", {"steps": 3})
    assert record["pipeline"] == "StableDiffusionPipeline"
    path = command("models", "path", "winter")
    assert path.stdout == command("models", "path", "postcard").stdout
    removed = command("models", "rm", "WINTER")
    assert "winter is no name of yours any more; the files are untouched." in removed.stderr
    assert command("models", "remove", "winter").returncode == 9
    assert command("models", "list", "--json").stdout.startswith('{"name": "postcard"')


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["SD-1.5", "postcard"], "SD-1.5 means sd15, which t2i knows already"),
        (["qwen_image", "postcard"], "qwen_image means qwen-image, which t2i knows already"),
        (["my/model", "postcard"], "'my/model' cannot be the name of a model: one has up to 64"),
        (["-x", "postcard"], None),
        (["..", "postcard"], "'..' cannot be the name of a model"),
        (["a b", "postcard"], "'a b' cannot be the name of a model"),
        (["___", "postcard"], "'___' cannot be the name of a model"),
        (["x" * 65, "postcard"], "cannot be the name of a model"),
        (["dreamy.safetensors", "postcard"], "one does not end as a file of weights does"),
        (["mine", "postcard", "--steps", "0"], "steps must be from 1 to 1000, not 0."),
        (["mine", "postcard", "--width", "100"], "width 100 is not a multiple of 8"),
        (["mine", "postcard", "--scheduler", "eule"], "did you mean euler?"),
        (["mine", "postcard", "--base", "sd15"], "--base goes with a single file"),
        (["mine", "postcard", "--vae", "no.safetensors"], "no.safetensors"),
        (["mine", "postcard", "--lora", "no.safetensors"], "There is no file no.safetensors."),
        (["mine", "postcard", "--revision", "main"], "which has no revisions"),
        (["mine", "no.safetensors"], "There is no file"),
        (["mine", "./nofolder"], "There is no file or folder"),
        (["mine", "postcrad"], "The model 'postcrad' is unknown."),
    ],
)
def test_what_cannot_be_is_refused_before_it_is_written(
    command: Command, home: Path, arguments: list[str], sentence: str | None
) -> None:
    done = command("models", "add", *arguments)
    assert done.returncode in {2, 9}
    assert done.stdout == ""
    if sentence:
        assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (home / "models.toml").exists()


def test_nothing_is_replaced_unasked(command: Command, home: Path) -> None:
    command("models", "add", "winter", "postcard", "--steps", "3")
    before = (home / "models.toml").read_text()
    again = command("models", "add", "winter", "postcard", "--steps", "4")
    assert again.returncode == 2
    assert "There is a model winter of yours already." in again.stderr
    spelled = command("models", "add", "Win-ter", "postcard")
    assert "Win-ter is another spelling of winter, a model of yours" in spelled.stderr
    assert (home / "models.toml").read_text() == before
    (home / "models.toml").write_text(f"# my models\n{before}\n[other]\nmodel = 'postcard'\n")
    assert command("models", "add", "winter", "postcard", "--overwrite").returncode == 0
    after = (home / "models.toml").read_text()
    assert after.startswith("# my models\n")
    assert "steps" not in after
    assert "[other]" in after


def test_a_repository_is_described_and_a_hub_out_of_reach_is_told(
    t2i: T2I, hub: FakeHub, home: Path
) -> None:
    hub.repos["ann/picture"] = Repo(repository())
    address = "https://huggingface.co/ann/picture"
    done = t2i("models", "add", "ann", address, "--steps", "9", env=hub.environment)
    assert done.returncode == 0, done.stderr
    assert 'model = "ann/picture"' in (home / "models.toml").read_text()
    absent = t2i("models", "add", "bob", "ann/nothing", env=hub.environment)
    assert absent.returncode == 9
    unreachable = t2i("models", "add", "bob", "bob/other", "--offline")
    assert unreachable.returncode == 0
    assert "What bob stands for could not be checked: " in unreachable.stderr


def test_the_users_value_comes_before_the_entrys_and_that_before_the_models(file: Path) -> None:
    add("mine", "postcard", steps=4, guidance_scale=3.0, width=64, negative_prompt="night")
    request = resolved("mine")
    assert (request.model, request.own_name) == ("postcard", "mine")
    assert (request.steps, request.guidance_scale, request.width) == (4, 3.0, 64)
    assert (request.height, request.negative_prompt) == (128, "night")
    own = resolved("mine", steps=5, negative_prompt="", height=64)
    assert (own.steps, own.negative_prompt, own.height, own.width) == (5, "", 64, 64)


def test_styles_are_added_to_the_entrys_negative_prompt(file: Path, tmp_path: Path) -> None:
    add("dreamy", "postcard", negative_prompt="blurry")
    csv = "name,prompt,negative_prompt\nsnowy,in snow,rain\nplain,a photo,\n"
    (tmp_path / "styles.csv").write_text(csv)

    def negative(*style: str, **values: Any) -> str | None:  # noqa: ANN401
        request = build_request({"prompt": "a", "model": "dreamy", "style": style, **values})
        spec = LocalBackend(LocalOptions(device="cpu", offline=True)).describe(request)
        styled = expand_styles(
            request, StyleFile(tmp_path / "styles.csv"), spec.own_negative_prompt
        )
        return resolve_request(styled, spec).negative_prompt

    assert negative("snowy") == "blurry, rain"
    assert negative("plain") == "blurry"
    assert negative("snowy", negative_prompt="fog") == "fog, rain"
    assert negative("snowy", negative_prompt="") == "rain"


def test_processes_that_add_at_the_same_time_lose_nothing(
    file: Path, t2i_env: dict[str, str]
) -> None:
    code = (
        "import sys\n"
        "from t2i_cli.models.user_catalog import write_table\n"
        "for n in range(8):\n"
        "    write_table(f'm{sys.argv[1]}-{n}', {'model': 'postcard'}, overwrite=False)\n"
    )
    env = t2i_env | {"T2I_CONFIG": os.environ["T2I_CONFIG"]}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(number)], env=env) for number in range(3)
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(user_catalog.read_tables()) == 24


def test_the_values_make_the_id_and_the_name_does_not(file: Path) -> None:
    add("mine", "postcard", steps=4, loras=parse_loras([f"{SNOW}:0.5"]))
    add("yours", "postcard", steps=4, loras=parse_loras([f"{SNOW}:0.5"]))
    plain = resolved("postcard", steps=4, loras=parse_loras([f"{SNOW}:0.5"]))
    assert resolved("mine").identity() == resolved("yours").identity() == plain.identity()
    assert resolved("mine").batch_key() == plain.batch_key()
    add("mine", "postcard", steps=5, loras=parse_loras([f"{SNOW}:0.5"]))
    assert resolved("mine").identity() != plain.identity()


@pytest.mark.parametrize(
    ("field", "default", "neutral"),
    [
        ("prompt_syntax", "a1111", "plain"),
        ("clip_skip", 2, 1),
        ("guidance_rescale", 0.7, 0.0),
        ("step_cache", 0.1, 0.0),
    ],
)
def test_a_neutral_value_keeps_a_default_away(field: str, default: object, neutral: object) -> None:
    spec = ModelSpec(name="x/y", pipeline="FluxPipeline", defaults=((field, default),))
    if field != "step_cache":
        spec = replace(spec, pipeline="StableDiffusionPipeline")

    def settled(**values: Any) -> object:  # noqa: ANN401
        request = build_request({"prompt": "a", "model": "x/y", **values})
        return getattr(resolve_request(request, spec), field)

    assert settled() == default
    assert settled(**{field: neutral}) is None
    plain = replace(spec, defaults=())
    asked = build_request({"prompt": "a", "seed": 1, "model": "x/y", field: neutral})
    bare = build_request({"prompt": "a", "seed": 1, "model": "x/y"})
    ids = {resolve_request(each, plain).identity() for each in (asked, bare)}
    assert len(ids) == 1


def test_a_default_that_cannot_act_beside_the_users_values_is_told_and_left_out(file: Path) -> None:
    add("mine", "postcard", negative_prompt="night")
    request = build_request({"prompt": "a", "model": "mine", "guidance_scale": 1.0})
    notes: list[str] = []
    backend = LocalBackend(LocalOptions(device="cpu", offline=True))
    settled = resolve_request(request, backend.describe(request), on_note=notes.append)
    assert settled.negative_prompt is None
    assert "The negative prompt cannot act at guidance 1" in notes[0]


def test_the_entrys_steps_come_before_those_of_its_lora_for_few_steps(
    file: Path, tmp_path: Path
) -> None:
    lora = tmp_path / "lcm-lora-sdv1-5.safetensors"
    lora.write_bytes(SNOW.read_bytes())
    add("quick", "postcard", loras=parse_loras([str(lora)]))
    add("six", "postcard", steps=6, loras=parse_loras([str(lora)]))
    assert (resolved("quick").steps, resolved("quick").scheduler) == (4, "lcm")
    assert (resolved("six").steps, resolved("six").scheduler) == (6, "lcm")
    assert resolved("six", steps=8).steps == 8


def test_an_own_model_of_an_own_model_has_its_values(file: Path) -> None:
    add("first", "postcard", steps=4, width=64)
    add("second", "first", steps=5)
    request = resolved("second")
    assert (request.model, request.steps, request.width) == ("postcard", 5, 64)


def test_files_are_stored_by_their_whole_paths(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_models.copy_postcard(tmp_path / "card")
    loras = tmp_path / "loras"
    loras.mkdir()
    (loras / "snow.safetensors").write_bytes(SNOW.read_bytes())
    given = parse_loras(["loras/snow.safetensors:0.5"])
    entry = new_own_model("card1", "card", {"loras": given}, lora_dir=None)
    assert entry.model == str(tmp_path / "card")
    assert entry.values["loras"][0].source == str(loras / "snow.safetensors")
    named = new_own_model("card1", "~/x", {"loras": parse_loras(["snow"])}, lora_dir="loras")
    assert named.values["loras"][0].source == str(loras / "snow.safetensors")


def test_a_file_that_is_gone_is_one_sentence_that_names_the_entry(
    command: Command, file: Path, tmp_path: Path
) -> None:
    folder = tiny_models.copy_postcard(tmp_path / "card")
    lora = tmp_path / "snow.safetensors"
    lora.write_bytes(SNOW.read_bytes())
    add("mine", str(folder), loras=(Adapter(kind="lora", source=str(lora)),))
    assert resolved("mine").model == str(folder)
    lora.unlink()
    gone = f"Your model mine has {lora} as one of its loras, which is not there."
    assert told(lambda: resolved("mine")).startswith(gone)
    assert resolved("mine", loras=parse_loras([str(SNOW)])).steps
    folder.rename(tmp_path / "moved")
    gone = f"Your model mine is {folder}, which is not there."
    assert told(lambda: resolved("mine")).startswith(gone)
    shown = command("models", "show", "mine", T2I_CONFIG=str(file.with_name("config.toml")))
    assert (shown.returncode, gone in shown.stderr) == (9, True)
    assert shown.stdout.startswith(f"name: mine\nmodel: {folder}\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[mine", "is not valid TOML: "),
        ("[mine]\nsteps = 4", "line 1: mine: model must be a file, a folder, or owner/name"),
        ("x = 1\nmine = 3", "line 2: mine: this is no table with a model and its defaults."),
        ("[mine]\nmodel = 'postcard'\n\nsteps = 'four'", "line 4: mine: steps: must be a whole"),
        ("[mine]\nmodel = 'postcard'\nstepz = 4", "line 3: mine: stepz is no default of a model;"),
        ("[mine]\nmodel = 'postcard'\nsteps = 0", "line 3: mine: steps must be from 1 to 1000"),
        ("[mine]\nmodel = 'postcard'\nseed = 1", "line 3: mine: seed is no default of a model"),
        (
            "[other]\nsteps = 1\n['mine']\nmodel = 'postcard'\n\n[[mine.loras]]\nsource = ''",
            "line 6: mine: An entry of loras names no file.",
        ),
        ("[mine]\nmodel = 'postcard'\nscheduler = 'eule'", "line 3: mine: "),
        (
            "mine.model = 'postcard'\nmine.vae = 3",
            "line 2: mine: vae: A part of a model is ",
        ),
        ("\x00", "is not valid TOML"),
    ],
)
def test_a_damaged_file_is_one_sentence_with_its_line(file: Path, text: str, sentence: str) -> None:
    file.write_text(text)
    message = told(lambda: resolved("mine"))
    assert str(file) in message
    assert sentence in message
    assert resolved("postcard").model == "postcard"


def test_a_file_that_is_no_regular_one_is_left_alone(file: Path, tmp_path: Path) -> None:
    os.mkfifo(file)
    assert "it is no regular file" in told(lambda: resolved("mine"))
    assert "it is no regular file" in told(lambda: add("mine", "postcard"))
    file.unlink()
    kept = tmp_path / "dotfiles.toml"
    kept.write_text("# kept\n")
    file.symlink_to(kept)
    add("mine", "postcard")
    assert file.is_symlink()
    assert kept.read_text().startswith("# kept\n")
    assert user_catalog.known_names() == ["mine"]


def test_a_damaged_entry_is_told_in_the_list_and_can_be_removed(
    command: Command, home: Path
) -> None:
    (home / "models.toml").write_text("[a]\nmodel = 1\n[b]\nmodel = 'postcard'\n[sd15]\nmodel='x'")
    listed = command("models", "list")
    assert listed.returncode == 0
    assert listed.stdout.splitlines()[1].startswith("b ")
    assert "line 2: a: model must be" in listed.stderr
    assert "line 5: sd15: t2i has a model sd15 of its own." in listed.stderr
    assert command("models", "remove", "a").returncode == 0
    assert "[a]" not in (home / "models.toml").read_text()


def test_a_misspelt_name_is_answered_with_the_nearest_own_one(file: Path) -> None:
    add("dreamshaper", "postcard")
    assert "Did you mean dreamshaper?" in told(lambda: resolved("dremshaper"))
    assert resolved("Dream-Shaper").own_name == "dreamshaper"


def test_a_folder_of_that_very_name_comes_before_another_spelling(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_models.copy_postcard(tmp_path / "Card")
    add("card", "postcard", steps=3)
    assert resolved("Card").model == "Card"
    assert resolved("card").model == "postcard"


def test_every_field_with_an_option_can_be_a_default() -> None:
    missing = set(FIELDS) - set(DEFAULT_FIELDS)
    assert missing == {"prompt", "model", "seed", "style"}
    flags = {FIELDS[name].flags[0] for name in DEFAULT_FIELDS}
    help_text = run_in_process("models", "add", "--help", env=dict(os.environ)).stdout
    assert {flag for flag in flags if flag not in help_text} == set()
    assert "--style" not in help_text.replace("--styles", "")


def test_other_machines_are_told_that_the_name_is_of_this_one(file: Path) -> None:
    add("mine", "postcard")
    sentence = "mine is a name of yours, which means a model on this machine only."
    assert sentence in told(lambda: containers.find_source("mine", "t2i"))


@pytest.mark.parametrize("name", ["dreamy.safetensors", "ann/dreamy/v1.gguf"])
def test_a_single_file_is_not_deployed(name: str) -> None:
    sentence = f"{name} is a single file; an endpoint takes a whole model"
    assert sentence in told(lambda: containers.find_source(name, "t2i"))


def test_the_worker_gets_the_model_and_the_values(file: Path) -> None:
    add("mine", "postcard", steps=3, loras=parse_loras([str(SNOW)]))
    backend = WorkerBackend(LocalOptions(), 60, LocalBackend)
    request = build_request({"prompt": "a", "model": "mine"})
    settled = resolve_request(request, backend.describe(request))
    assert (settled.model, settled.own_name) == ("postcard", "mine")
    body: Any = build_body([(0, settled)], "png")["requests"]
    body = body[0]
    assert body["steps"] == 3
    assert body["loras"][0]["source"] == str(SNOW)


def test_a_record_made_elsewhere_is_completed_with_the_name() -> None:
    request = factories.request(own_name="mine")

    class Elsewhere(StubBackend):
        def run(self, requests: Any, *_: Any, **__: Any) -> Any:  # noqa: ANN401
            made = replace(factories.generated(), request=requests[0])
            file = EncodedImage(data=b"png", format="png", has_record=True)
            yield replace(made, file=file)

    [made] = run_backend(Elsewhere(), [request], lambda _: None, Flag())
    assert isinstance(made, GeneratedImage)
    assert made.info.own_name == "mine"
    assert made.file is None  # it is encoded again, with the name


def test_a_server_lists_the_name_and_hides_the_paths(file: Path) -> None:
    add("winter", "postcard", steps=2, loras=parse_loras([f"{SNOW}:0.5"]))
    local = LocalBackend(LocalOptions(device="cpu", offline=True))
    with serving(local, model="winter") as server:
        models = httpx2.get(f"{server.url}/v1/models").json()["data"]
        assert [model["id"] for model in models] == ["winter"]
        assert httpx2.get(f"{server.url}/t2i/v1/model").json()["steps"] == 2
        address = f"{server.url}/v1/images/generations"
        body = {"prompt": "a red star", "model": "winter", "seed": 3}
        answer = httpx2.post(address, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        record = answer.json()["data"][0]["t2i"]
        assert record["request"]["steps"] == 2
        assert record["request"]["loras"][0]["source"] == "snow"
        assert record["lock"]["own_name"] == "winter"
        assert str(SNOW.parent) not in answer.text
        refused = httpx2.post(address, json=body | {"loras": [str(SNOW)]})
        assert refused.status_code == 400
        other = httpx2.post(address, json=body | {"model": "summer"})
        assert other.status_code == 404


def test_rows_of_a_batch_name_own_models(command: Command, tmp_path: Path) -> None:
    command("models", "add", "mine", "postcard", "--steps", "3", "--size", "64")
    rows = tmp_path / "rows.jsonl"
    lines: list[Mapping[str, object]] = [
        {"prompt": "a red star", "model": "mine"},
        {"prompt": "a red star", "model": "mine", "steps": 5},
        {"prompt": "a red star", "model": "postcard"},
    ]
    rows.write_text("\n".join(map(json.dumps, lines)))
    done = command("batch", rows, "-o", tmp_path / "out", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    groups = json.loads(done.stdout)["groups"]
    found = [(group["model"], group["steps"], group["width"]) for group in groups]
    assert found == [("postcard", 3, 64), ("postcard", 5, 64), ("postcard", 20, 128)]


def test_the_setting_and_the_shell_know_own_names(command: Command, t2i: T2I) -> None:
    command("models", "add", "winter", "postcard")
    assert command("config", "set", "model", "winter").returncode == 0
    assert (
        json.loads(command("generate", "x", "--dry-run", "--json").stdout)["requests"][0]["model"]
        == "postcard"
    )
    assert command("config", "set", "model", "summer").returncode != 0
    for line, offered in (
        ("t2i generate x -m win", ["winter"]),
        ("t2i models remove win", ["winter"]),
    ):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        done = t2i(env={"_T2I_COMPLETE": "complete_bash"} | words)
        assert done.stdout.split() == offered


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("./crad", "There is no file or folder ./crad. Did you mean ./card?"),
        ("./models/crad", "Did you mean ./models/card?"),
        ("./nowhere/card", "There is no file or folder ./nowhere/card. `t2i models list`"),
        ("./link", "./link is a link to moved, which is not there."),
        ("card/model_index.json", "card/model_index.json describes a model, and is none. Name its"),
        ("./models", "so it is not a diffusers model. Name the model in it: models/card."),
        ("./pickles", "holds pickles only (old.ckpt), which can run code when they are loaded."),
        (
            "./snow",
            "holds a LoRA, which changes a model and is none. Name the model it was made for,",
        ),
        ("./card/unet", "and no whole model. Name the model it belongs to, and this by --vae,"),
        ("./hub", "is a cache of the Hub, which holds 1 model. Name one of them, such as a/b."),
    ],
)
def test_a_folder_that_is_no_model_is_told_with_what_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("card", "models/card"):
        Path(folder).parent.mkdir(exist_ok=True)
        tiny_models.copy_postcard(Path(folder))
    Path("link").symlink_to("moved")
    for folder, file in (("pickles", "old.ckpt"), ("snow", "pytorch_lora_weights.safetensors")):
        Path(folder).mkdir()
        Path(folder, file).write_bytes(b"")
    Path("hub/models--a--b").mkdir(parents=True)
    assert sentence in told(lambda: resolved(name))
