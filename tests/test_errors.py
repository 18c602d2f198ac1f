"""Errors that are built of what may be missing: none of them fails itself."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from t2i_cli import prompts
from t2i_cli.backends.local.device import Device
from t2i_cli.backends.local.memory import GROUP_OFFLOAD, MODEL_OFFLOAD, MemoryEstimate
from t2i_cli.batch import options, row_filenames
from t2i_cli.cli.commands import models as models_command
from t2i_cli.errors import (
    InputError,
    ModelError,
    T2IError,
    error_reason,
    internal_error,
    os_reason,
)
from t2i_cli.events import RequestSent, Step
from t2i_cli.models import catalog, resolution
from t2i_cli.output import filenames
from t2i_cli.output.image_writer import storage_error
from t2i_cli.prompts import entries
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.progress import Progress
from t2i_cli.vertex import containers

GPU = Device(name="cuda:0", kind="cuda", label="GPU")
NOTHING = MemoryEstimate(weights={}, denoise=0, attention=0, decode=0, tile=0)

NAMED: dict[str, Callable[[str], object]] = {
    "local": lambda n: resolution.resolve_model(n, None, offline=True, trust_remote_code=False),
    "models": models_command._find_usable,
    "vertex": lambda n: containers.find_source(n, "t2i"),
}
"""Everything that looks for a model by its name."""


@pytest.mark.parametrize("find", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("foo", None),
        ("civitai:4384", None),
        ("x" * 300, None),
        ("ünïcode", None),
        ("sd14", "sd15"),
        ("Sdxll", "sdxl"),
        ("psotcard", "postcard"),
        ("FLUX.2-Schnell", "flux-schnell"),
    ],
)
def test_a_name_that_is_none_has_one_sentence_and_a_hint(
    find: Callable[[str], object], name: str, near: str | None
) -> None:
    with pytest.raises(ModelError) as caught:
        find(name)
    assert caught.value.message == f"The model {name!r} is unknown."
    hint = str(caught.value.hint)
    assert hint.removeprefix(f"Did you mean {near}? ").startswith("`t2i models list` shows")
    assert ("Did you mean" in hint) == (near is not None)


@pytest.mark.parametrize("find", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("name", ["./none", "~none/none", "a/b/c", "c:\\none", "y" * 300 + "/z/"])
def test_a_folder_that_is_none_has_the_same_sentence_everywhere(
    find: Callable[[str], object], name: str
) -> None:
    with pytest.raises(ModelError) as caught:
        find(name)
    assert caught.value.message == f"There is no model folder {name}."
    assert str(caught.value.hint).startswith("`t2i models list` shows the short names; a folder")


@pytest.mark.parametrize("find", NAMED.values(), ids=NAMED)
def test_a_folder_that_holds_no_model_is_refused_everywhere(
    find: Callable[[str], object], tmp_path: Path
) -> None:
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(ModelError, match="is not a diffusers model"):
        find(str(tmp_path))
    (tmp_path / "model_index.json").mkdir()
    with pytest.raises(ModelError, match="Cannot read .*model_index.json: it is a folder"):
        find(str(tmp_path))


FAILED = [
    (OSError(), "OSError"),
    (OSError("of a library"), "of a library"),
    (OSError(errno.ENOSPC, None), "[Errno 28] None"),
    (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
]


@pytest.mark.parametrize(("error", "said"), FAILED)
def test_a_system_error_without_a_reason_is_told_all_the_same(error: OSError, said: str) -> None:
    assert os_reason(error) == said
    assert storage_error(error, "write", Path("x")).message == f"Cannot write 'x': {said}."


def test_what_nobody_expected_is_one_line_whatever_it_says() -> None:
    assert error_reason(ValueError()) == "ValueError"
    assert error_reason(ValueError("a\n  b")) == "a b"
    assert len(error_reason(ValueError("x" * 10_000))) == 200
    error = internal_error(ValueError("a\nb"))
    assert (error.message, error.exit_code) == ("An unexpected ValueError: a b", 1)
    assert isinstance(error.__cause__, ValueError)


def test_weights_that_are_none_have_a_peak() -> None:
    for measures in ((), (MODEL_OFFLOAD,), (GROUP_OFFLOAD,)):
        assert NOTHING.peak(measures, 1, GPU) == 0


@pytest.mark.parametrize("event", [Step(indices=(), step=1, steps=2), RequestSent(indices=())])
def test_an_event_about_no_image_is_shown(event: Step | RequestSent) -> None:
    with Progress(Console(), 2) as progress:
        progress(event)


EMPTY: dict[str, tuple[Callable[[], object], type[T2IError]]] = {
    "name": (lambda: row_filenames.check_filename(""), InputError),
    "template": (lambda: row_filenames.check_template("", None), InputError),
    "output": (lambda: filenames.parse_output("", None, is_folder=False), InputError),
    "width": (lambda: filenames.parse_output("{seed:" + "9" * 5000 + "}.png", None), InputError),
    "field": (lambda: entries.check_value("", 1), InputError),
    "far field": (lambda: entries.check_value("zzz", 1), InputError),
    "format": (lambda: prompts.prompts_format("", None), InputError),
    "vary": (lambda: options.parse_vary([""]), InputError),
    "varied field": (lambda: options.parse_vary(["=1"]), InputError),
    "varied values": (lambda: options.parse_vary(["steps=,"]), InputError),
    "seeds": (lambda: options.parse_seeds(""), InputError),
}


@pytest.mark.parametrize(("build", "kind"), EMPTY.values(), ids=EMPTY)
def test_what_is_empty_is_refused_in_words(
    build: Callable[[], object], kind: type[T2IError]
) -> None:
    with pytest.raises(kind) as caught:
        build()
    assert caught.value.message.rstrip().endswith((".", "?"))


def test_the_nearest_folder_that_stands(tmp_path: Path) -> None:
    assert filenames.existing_parent(tmp_path / "a" / "b") == tmp_path
    assert filenames.existing_parent(tmp_path / ("x" * 300) / "b") == tmp_path
    assert filenames.existing_parent(Path("nowhere at all")) == Path.cwd()


def test_every_alias_is_taken_in_any_case_and_punctuation() -> None:
    for name, spec in catalog.MODELS.items():
        for spelled in (name.upper(), name.title(), name.replace("-", "_"), name.replace("-", " ")):
            assert catalog.find_known(spelled) == spec
            assert catalog.find_known(spelled, "main") == replace(spec, revision="main")
            assert (
                resolution.resolve_model(spelled, None, offline=True, trust_remote_code=False)
                == spec
            )
    assert len(catalog._BY_LETTERS) >= len(catalog.MODELS)
    for spelled, name in {
        "sd-1.5": "sd15",
        "SD_1.5": "sd15",
        "SD 3.5 Medium": "sd35-medium",
        "FLUX.1-schnell": "flux-schnell",
        "stable-diffusion-v1-5": "sd15",
    }.items():
        assert catalog.find_known(spelled) == catalog.MODELS[name]


@pytest.mark.parametrize("name", ["", "-", "sd", "./sd15", "~sd15", "sd15/", "a/SD15", "sd15\\"])
def test_what_is_no_spelling_of_an_alias(name: str) -> None:
    assert catalog.find_spelled(name) is None


def test_a_folder_comes_before_the_spelling_of_an_alias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SDXL").mkdir()
    assert catalog.find_known("SDXL") is None
    assert catalog.find_known("Sdxl") == catalog.find_known("sdxl") == catalog.MODELS["sdxl"]
    with pytest.raises(ModelError, match="folder SDXL is empty"):
        NAMED["local"]("SDXL")
