"""A bad value is an error wherever it comes from, and never the default in its place."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from t2i_cli.backends.http import options as http
from t2i_cli.batch import timings
from t2i_cli.batch.lock import parse_shard
from t2i_cli.errors import InputError, StorageError
from t2i_cli.prompts import read_prompts
from t2i_cli.prompts.entries import ROW_FIELDS, PromptProblem
from t2i_cli.request import GenerateRequest
from t2i_cli.server.api.openai import GenerationBody
from t2i_cli.server.api.predict import PredictBody
from t2i_cli.server.api.t2i import GenerateBody
from t2i_cli.server.api.vertex import Instance, PredictionsBody
from t2i_cli.server.schemas import ImageRequest
from t2i_cli.server.vertex_container import VertexContainer
from t2i_cli.settings import store
from t2i_cli.vertex import machine_types
from tests.conftest import T2I

SETTINGS = {
    "model": " ",
    "backend": "Local",
    "device": "gpu",
    "dtype": "fp8",
    "memory": "lots",
    "lora_dir": " ",
    "styles": " ",
    "compile": "maybe",
    "keep_alive": "10",
    "format": "gif",
    "output": "a\nb",
    "retries": "-1",
    "timeout": "0",
    "concurrency": "0",
    "http_url": "host/v1",
    "http_dialect": "OpenAI",
    "http_api_key": "a b",
    "hf_provider": "Fal AI",
    "hf_bill_to": "an org",
    "ray_address": "http://head",
    "ray_workers": "many",
    "ray_gpus_per_worker": "2",
    "ray_worker_timeout": "soon",
    "vertex_endpoint": "a/b",
    "vertex_project": "My Project",
    "vertex_region": "europe",
    "vertex_api_endpoint": "http://example.com",
    "vertex_ca_file": " ",
    "vertex_image": "image",
    "vertex_bucket": "B",
    "vertex_prices": " ",
    "gemini_model": "imagen",
    "gemini_region": "mars",
    "image_prices": " ",
}


@pytest.mark.parametrize("key", store.SETTINGS)
def test_settings(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.toml"
    monkeypatch.setenv("T2I_CONFIG", str(file))
    bad = SETTINGS[key]
    monkeypatch.setenv(store.setting_named(key).variable, bad)
    with pytest.raises(InputError, match=store.setting_named(key).variable):
        store.get_setting(key)
    monkeypatch.delenv(store.setting_named(key).variable)
    for value in (bad, "", True, 5, 1.5, ["postcard"], {"a": 1}):
        text = "{a = 1}" if isinstance(value, dict) else json.dumps(value)
        file.write_text(f"{key} = {text}\n")
        with pytest.raises(InputError, match=f"{key} must be"):
            store.get_setting(key)


WRONG: dict[type, list[object]] = {
    str: [True, 5, 1.5, [], {}, ["a"]],
    int: [True, False, "5", "", 1.5, [], {}, 10**30],
    float: [True, False, "5", "", [], {}, 10**400],
}
WRONG_EXTRAS: list[object] = [True, 5, 1.5, ["a"], "not JSON", {"a": {"b": {"c": 1}}}, {"a b": 1}]


@pytest.mark.parametrize("field", ROW_FIELDS)
def test_rows(field: str, tmp_path: Path) -> None:
    kind = ROW_FIELDS[field]
    values = [v for v in WRONG.get(kind, WRONG_EXTRAS) if not (v == 10**30 and kind is int)]
    if kind not in WRONG and field != "extras":
        values.remove("not JSON")  # a name
        if field in {"loras", "embeddings", "style"}:
            values.remove(["a"])  # several
    file = tmp_path / "p.jsonl"
    rows = [{"prompt": "a", field: value} for value in values]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = read_prompts(str(file), "jsonl")
    assert found.entries == []
    assert [(p.line, p.field) for p in found.problems] == [
        (line, field) for line in range(1, len(values) + 1)
    ]
    assert all(isinstance(problem, PromptProblem) and problem.message for problem in found.problems)


@pytest.mark.parametrize(
    "values",
    [
        {"model": ""},
        {"model": " \t"},
        {"revision": ""},
        {"scheduler": ""},
        {"seed": 10**30},
        {"steps": 10**30},
        {"guidance_scale": float("nan")},
        {"guidance_scale": float("inf")},
    ],
)
def test_requests(values: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        GenerateRequest(prompt="a", **values)  # type: ignore[arg-type]
    assert caught.value.field in values


BODIES: list[tuple[type[BaseModel], dict[str, object]]] = [
    (ImageRequest, {"prompt": "a"}),
    (PredictBody, {"prompt": "a"}),
    (GenerationBody, {"prompt": "a"}),
    (Instance, {"prompt": "a"}),
]


@pytest.mark.parametrize(("body", "sound"), BODIES, ids=[body.__name__ for body, _ in BODIES])
def test_bodies(body: type[BaseModel], sound: dict[str, object]) -> None:
    body.model_validate(sound)
    wrong: tuple[object, ...] = (True, [], {}, [1], 1.5, "x y z")
    for name, field in body.model_fields.items():
        kind = str(field.annotation)
        if field.annotation is Any:  # its own parser refuses it: tests/test_server_bodies.py
            continue
        for value in wrong:
            fits = (
                (isinstance(value, bool) and "bool" in kind)
                or (isinstance(value, str) and "str" in kind)
                or (isinstance(value, float) and "float" in kind)
            )
            if fits:
                continue
            with pytest.raises(ValidationError):
                body.model_validate(sound | {name: value})
    for name in ("previews", "nothing"):
        with pytest.raises(ValidationError):
            body.model_validate(sound | {name: 1})


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (GenerateBody, {"requests": []}),
        (GenerateBody, {"requests": [{"prompt": "a"}], "previews": True}),
        (GenerateBody, {"requests": [{"prompt": "a"}], "lenient": 1}),
        (GenerateBody, {"requests": [{"prompt": "a"}], "format": ""}),
        (PredictionsBody, {"instances": []}),
        (PredictionsBody, {"instances": [{"prompt": "a"}], "parameters": []}),
        (PredictionsBody, {"instances": [{"prompt": "a", "seed": True}]}),
    ],
)
def test_bodies_of_several(body: type[BaseModel], value: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        body.model_validate(value)


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2", "1/²", "1.0/2"])
def test_shards(text: str) -> None:
    with pytest.raises(InputError, match="--shard"):
        parse_shard(text)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "9" * 5000])
def test_ports_of_vertex(port: str) -> None:
    with pytest.raises(InputError, match="AIP_HTTP_PORT"):
        VertexContainer.from_environment({"AIP_HTTP_PORT": port})


def test_keys_of_openai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("OPENAI_API_KEY", "secret\nkey")
    with pytest.raises(InputError, match="OPENAI_API_KEY") as caught:
        http.api_key_for("https://api.openai.com/v1")
    assert "secret" not in caught.value.message
    assert http.api_key_for("https://example.com/v1") is None


def test_timings_that_are_none_make_no_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = timings._path()
    file.parent.mkdir(parents=True)
    for text in ("NaN", "Infinity", "-1", "0", "true", '"1"', "null", "1" + "0" * 400):
        file.write_text(f'{{"postcard on cpu": {text}, "sd15 on cpu": 2}}')
        assert timings.lookup_timing("postcard", "cpu") is None, text
        assert timings.lookup_timing("sd15", "cpu") == 2


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "x"])
def test_seconds_on_the_command_line(t2i: T2I, value: str) -> None:
    done = t2i("generate", "x", "--backend", "http", f"--timeout={value}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "message"),
    [
        # The name of a host is encoded late: "label too long".
        (("--backend", "http", "--url", f"http://{'a' * 4999}"), {}, 2, "is no address"),
        (("--backend", "http", "--url", "http://a..b/v1"), {}, 2, "is no address"),
        (("-m", "~nouser/x"), {}, 9, "no file or folder ~nouser/x"),
        (("-m", "postcard", "--guidance-scale", "1" * 400), {}, 2, "must be a number"),
        (("-m", "a" * 4999), {}, 9, "is unknown"),
        (("-m", "postcard", "-o", "b" * 300 + ".png"), {}, 2, "has 304 bytes"),
        ((), {"T2I_CONFIG": "~nouser/x"}, 2, "There is no home folder ~nouser"),
    ],
)
def test_values_that_libraries_stumble_over(
    arguments: tuple[str, ...], variables: dict[str, str], code: int, message: str, t2i: T2I
) -> None:
    done = t2i("generate", "x", *arguments, env=variables)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr[-2000:]
    assert message in done.stderr


@pytest.mark.parametrize("named", ["~nouser/prices.toml", "deep.toml", "digits.toml", "/dev/zero"])
def test_price_files(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep.toml").write_text("a=" + "[" * 20_000)
    (tmp_path / "digits.toml").write_text("[machines]\na = " + "1" * 400)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2I_VERTEX_PRICES", named)
    with pytest.raises((InputError, StorageError), match="toml|zero"):
        machine_types.load_prices()


@pytest.mark.parametrize("output", ["b" * 300, "b" * 300 + "/c", "1," * 2000])
def test_a_batch_s_folder_with_a_name_that_is_too_long(output: str, t2i: T2I) -> None:
    done = t2i("batch", "-", "-m", "postcard", "-o", output, "--dry-run", input="a star\n")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr[-2000:]
    assert "File name too long" in done.stderr
