"""Errors that are built of what may be missing: none of them fails itself."""

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import errors as hf

from t2i_cli import prompts, request
from t2i_cli.backends.http import dialects
from t2i_cli.backends.http.discovery import ServerInfo
from t2i_cli.backends.local import device
from t2i_cli.backends.local.device import Device
from t2i_cli.backends.local.memory import GROUP_OFFLOAD, MODEL_OFFLOAD, MemoryEstimate
from t2i_cli.batch import gallery, options, row_filenames
from t2i_cli.cli import main
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
from t2i_cli.hub import account
from t2i_cli.hub import errors as hub_errors
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog, libraries, resolution, schedulers
from t2i_cli.net import gcs, google_http
from t2i_cli.output import filenames
from t2i_cli.output.image_writer import storage_error
from t2i_cli.prompts import entries
from t2i_cli.request_fields import DIALECTS
from t2i_cli.settings import store
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.progress import Progress
from t2i_cli.vertex import containers, deployment_options, inventory, machine_types
from t2i_cli.vertex.inventory import Inventory
from t2i_cli.vertex.model_source import ModelSource
from t2i_cli.vertex.torchserve import container
from tests.factories import REQUEST, written_gallery

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
    assert caught.value.message == f"There is no file or folder {name}."
    assert str(caught.value.hint).startswith("`t2i models list` shows the short names; a folder")


@pytest.mark.parametrize("find", NAMED.values(), ids=NAMED)
def test_a_folder_that_holds_no_model_is_refused_everywhere(
    find: Callable[[str], object], tmp_path: Path
) -> None:
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(ModelError, match="holds single files of weights"):
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
    "seeds": (lambda: request.parse_seeds(""), InputError),
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


GONE = Path("gone") / "x"


def _raise(error: Exception) -> None:
    raise error


RARE: dict[str, Callable[[], object]] = {
    "half a size": lambda: dialects.build_image_request(
        replace(REQUEST, height=None), "m", DIALECTS["openai"], None
    ),
    "organisation": lambda: account.store_token("api_org_x"),
    "token": lambda: account.store_token(""),
    "broken download": lambda: _raise(hub_errors.hub_error(RuntimeError(), "")),
    "offline": lambda: _raise(hub_errors.hub_error(hf.OfflineModeIsEnabled(), "a/b")),
    "no name of a repository": lambda: _raise(hub_errors.hub_error(hf.HFValidationError(), "")),
    "not downloaded": lambda: _raise(hub_errors.not_downloaded("")),
    "no class": lambda: libraries.import_pipeline_class("NoSuchPipeline"),
    "own code": lambda: libraries.load_custom_pipeline(GONE, "pipeline", "Name"),
    "checksum": lambda: gcs.file_crc32c(GONE),
    "no message": lambda: _raise(google_http.error_from_google(403, b"")),
    "blank message": lambda: _raise(google_http.error_from_status(429, "", " \n")),
    "full stops": lambda: _raise(google_http.error_from_status(0, "FAILED_PRECONDITION", "...")),
    "no service": lambda: _raise(google_http.error_from_status(403, "", "SERVICE_DISABLED")),
    "no permission": lambda: _raise(google_http.error_from_status(403, "", "permission ")),
    "time to live": lambda: deployment_options._duration("--ttl", ""),
    "name of a deployment": lambda: deployment_options._check_name(""),
    "weights of none": lambda: containers.local_weights(
        ModelSource(spec=ModelSpec(name="")), dtype="float32"
    ),
    "archive": lambda: container.archived_source(ModelSource(spec=ModelSpec(name=""))),
    "no scheduler": lambda: schedulers.find_scheduler("", None),
    "no flow scheduler": lambda: schedulers.find_scheduler("ddim", True),
    "no device": lambda: device.find_device(""),
    "no model of a server": lambda: ServerInfo(
        url="", dialect=DIALECTS["openai"], models=[], facts={}
    ).model_name(""),
    "no setting": lambda: store.setting_named(""),
    "no endpoint": lambda: inventory.find_deployment(Inventory(), ""),
    "no machine": lambda: machine_types.choose_hardware("", None, ModelSpec(name="")),
    "no accelerator": lambda: machine_types.choose_hardware("a-b-c", "?", ModelSpec(name="")),
    "no prompts file": lambda: prompts.check_source(""),
    "no problems": lambda: _raise(prompts.PromptsError("", [])),
    "no file or folder": lambda: _raise(catalog.unknown_model("./")),
}
"""Errors that a user meets seldom, built of nothing where that is possible."""


@pytest.mark.parametrize("build", RARE.values(), ids=RARE)
def test_an_error_that_is_seldom_met_is_one_sentence(build: Callable[[], object]) -> None:
    with pytest.raises(T2IError) as caught:
        build()
    for text in (caught.value.message, caught.value.hint or "A sentence."):
        assert text.strip()
        assert "\n" not in text.strip(":\n")
        assert " ." not in text and "None" not in text
    json.dumps(caught.value.to_json())


def test_pages_without_a_place_are_told(tmp_path: Path) -> None:
    for name in gallery.GALLERY_NAMES:
        (tmp_path / name).write_text("of somebody else")
    with pytest.raises(InputError, match="no gallery without a place"):
        written_gallery(tmp_path, tmp_path)


def test_memory_that_is_used_up_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(key: str) -> None:
        raise MemoryError

    monkeypatch.setattr(store, "find_setting", exhausted)
    assert main._run(["config", "list"]) == 7
    assert capsys.readouterr().err == "error: The memory of this machine is used up.\n"
