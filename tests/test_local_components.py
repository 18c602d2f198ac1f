"""Which classes and which code of a model's folder are taken: in a process, and over diffusers."""

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.errors import ModelError
from t2i_cli.models import class_facts, component_check, libraries, pipeline_task, resolution
from t2i_cli.models.libraries import LibraryObject
from tests import tiny_models
from tests.conftest import T2I, Terminal
from tests.test_local_backend import ask, images, make

ABSTRACT = {"AutoTokenizer", "AutoProcessor", "PreTrainedTokenizerBase"}
REFUSAL = "runs code of its own"
MARKER = "the model's code was here"


def mark(marker: Path) -> str:
    return f"open({str(marker)!r}, 'a').write({MARKER + chr(10)!r})\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may change."""
    return tiny_models.copy_postcard(tmp_path / "model")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that a model's own code writes to."""
    return tmp_path / "marker"


@pytest.fixture
def own_tokenizer(folder: Path, marker: Path) -> Path:
    """A model with a processor, whose tokenizer is code in the folder."""
    processor = shutil.copytree(folder / "tokenizer", folder / "feature_extractor")
    (processor / "own.py").write_text(
        "from transformers import CLIPTokenizer\n"
        + mark(marker)
        + "class OwnTokenizer(CLIPTokenizer): pass\n"
    )
    tiny_models.edit_json(
        processor / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]},
    )
    side = {"height": 32, "width": 32}
    images = {"image_processor_type": "CLIPImageProcessor", "crop_size": side}
    (processor / "preprocessor_config.json").write_text(json.dumps(images))
    tiny_models.edit_json(
        folder / "model_index.json", feature_extractor=["transformers", "CLIPProcessor"]
    )
    return folder


ARGUMENTS = ("generate", "a red star", "--steps", "2", "-o", "star.png", "-m")


def refused(done: subprocess.CompletedProcess[str], marker: Path) -> None:
    assert done.returncode == 9
    assert REFUSAL in done.stderr
    assert "--trust-remote-code" in done.stderr
    assert "[y/N]" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not marker.exists()


def test_yes_to_every_question_runs_no_code(own_tokenizer: Path, marker: Path, t2i: T2I) -> None:
    refused(t2i(*ARGUMENTS, own_tokenizer, input="y\n" * 1000), marker)


def test_nor_does_a_closed_stdin(
    own_tokenizer: Path, marker: Path, t2i_env: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "t2i_cli", *ARGUMENTS, str(own_tokenizer)]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command],
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    refused(done, marker)


def test_nor_does_a_terminal(own_tokenizer: Path, marker: Path, t2i_terminal: Terminal) -> None:
    done = t2i_terminal(*ARGUMENTS, str(own_tokenizer), prompt="[y/N]", answer="y", env={})
    refused(done, marker)


def test_trusted_code_runs(own_tokenizer: Path, marker: Path, t2i: T2I, tmp_path: Path) -> None:
    """A tokenizer that transformers finds, and a network that diffusers finds."""
    unet = own_tokenizer / "unet/own_unet.py"
    unet.write_text(
        "from diffusers import UNet2DConditionModel\n"
        + mark(marker)
        + "class OwnUNet(UNet2DConditionModel): pass\n"
    )
    tiny_models.edit_json(own_tokenizer / "model_index.json", unet=["own_unet", "OwnUNet"])
    done = t2i(*ARGUMENTS, own_tokenizer, "--trust-remote-code")
    assert done.returncode == 0, done.stderr
    assert "[y/N]" not in done.stderr
    assert marker.read_text().splitlines() == [MARKER, MARKER]
    assert (tmp_path / "star.png").is_file()


def test_code_beside_a_component_needs_trust(folder: Path, marker: Path) -> None:
    (folder / "unet/own.py").write_text(mark(marker))
    tiny_models.edit_json(folder / "model_index.json", unet=["own", "OwnUNet"])
    with pytest.raises(ModelError, match=r"runs code of its own \(unet/own.py\)") as caught:
        resolution.pipeline_class(folder, trust_remote_code=False)
    assert "--trust-remote-code" in (caught.value.hint or "")
    assert not marker.exists()


def test_a_component_of_no_kind_is_exit_9(folder: Path, t2i: T2I) -> None:
    tiny_models.edit_json(folder / "model_index.json", safety_checker=["os", "system"])
    done = t2i(*ARGUMENTS, folder, "--trust-remote-code")
    assert done.returncode == 9
    assert "names os.system as its safety_checker" in done.stderr


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    ("library", "cls"),
    [
        ("os", "system"),
        ("subprocess", "Popen"),
        ("antigravity", "Card"),
        ("transformers", "Trainer"),
        ("transformers", "pipeline"),
        ("transformers", "AutoTokenizer"),
        ("diffusers", "utils"),
        ("diffusers", "StableDiffusionPipeline"),
        ("diffusers.utils", "logging"),
        ("stable_diffusion", "StableDiffusionPipeline"),
        ("stable_diffusion", "pipeline_stable_diffusion"),
        ("pipeline_utils", "os"),
        ("../model/unet/own", "Own"),
        ("__main__", "main"),
        ("transformers", "models.clip.CLIPTextModel"),
        ("transformers", ""),
        (1, 2),
    ],
)
def test_what_is_no_component_is_refused(
    library: object, cls: object, trusted: bool, folder: Path
) -> None:
    tiny_models.edit_json(folder / "model_index.json", text_encoder=[library, cls])
    with pytest.raises(ModelError, match="is no component of diffusers or transformers"):
        resolution.pipeline_class(folder, trust_remote_code=trusted)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["../unet", "unet/..", "os.path"])
def test_a_component_with_a_path_for_a_name_is_refused(name: str, folder: Path) -> None:
    tiny_models.edit_json(
        folder / "model_index.json", **{name: ["diffusers", "UNet2DConditionModel"]}
    )
    with pytest.raises(ModelError, match="is no component"):
        resolution.pipeline_class(folder, trust_remote_code=True)


@pytest.mark.parametrize(
    "named", ["utils", "UNet2DConditionModel", "os.path", ["../own", "Own"], ["own", 1], [], None]
)
def test_what_is_no_pipeline_is_refused(named: object, folder: Path) -> None:
    tiny_models.edit_json(folder / "model_index.json", _class_name=named)
    with pytest.raises(ModelError, match=r"pipeline class"):
        resolution.pipeline_class(folder, trust_remote_code=True)


def test_what_needs_a_package_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.utils import dummy_torch_and_scipy_objects as stand_ins

    diffusers = libraries.import_diffusers()
    monkeypatch.setattr(
        diffusers, "LMSDiscreteScheduler", stand_ins.LMSDiscreteScheduler, raising=False
    )
    tiny_models.edit_json(
        folder / "model_index.json", scheduler=["diffusers", "LMSDiscreteScheduler"]
    )
    with pytest.raises(ModelError, match="LMSDiscreteScheduler, needs torch, scipy installed"):
        component_check.check_components(folder, trust_remote_code=False)


def test_code_that_no_component_needs_is_not_run(folder: Path, marker: Path) -> None:
    """Concrete classes are taken as they are, whatever their configs say of code."""
    for name, file in [
        ("tokenizer", "tokenizer_config.json"),
        ("text_encoder", "config.json"),
        ("unet", "config.json"),
        ("scheduler", "scheduler_config.json"),
    ]:
        (folder / name / "own.py").write_text(mark(marker))
        autos = ("AutoTokenizer", "AutoConfig", "AutoModel", "AutoScheduler")
        tiny_models.edit_json(folder / name / file, auto_map=dict.fromkeys(autos, "own.Own"))
    for name in ("own.py", "pipeline.py"):
        (folder / name).write_text(mark(marker))
    tiny_models.edit_json(
        folder / "model_index.json", custom_pipeline="own", auto_map={"a": "own.Own"}
    )
    backend = LocalBackend(LocalOptions())
    assert images(make(backend, ask(backend, model=folder, steps=1)))
    assert not marker.exists()


def text_to_image() -> list[LibraryObject]:
    """Every class of diffusers that t2i takes as text-to-image."""
    import diffusers

    found = []
    for name in dir(diffusers):
        if not name.endswith("Pipeline"):
            continue
        cls = getattr(diffusers, name)
        if getattr(cls, "_backends", None) is not None:
            continue
        if pipeline_task.other_task(class_facts.facts_of_class(cls)) is None:
            found.append(cls)
    return found


def named(cls: LibraryObject) -> list[str] | None:
    """How a model_index.json names a class; `None` for what no component is of."""
    if cls.__name__ == "KarrasDiffusionSchedulers":
        return ["diffusers", "EulerDiscreteScheduler"]
    # Annotations only: models name the class that these make, and diffusers cannot load them.
    if not inspect.isclass(cls) or cls.__name__ in ABSTRACT:
        return None
    module = cls.__module__.split(".")
    if module[0] not in {"diffusers", "transformers"} or "_backends" in vars(cls):
        return None
    # diffusers itself finds no component there; without cosmos_guardrail it has a stand-in.
    if "deprecated" in module or cls.__name__ == "CosmosSafetyChecker":
        return None
    if module[1] == "pipelines":
        return [module[-2], cls.__name__]
    return [module[0], cls.__name__]


@pytest.mark.full
def test_the_components_of_every_pipeline_are_taken(tmp_path: Path) -> None:
    libraries.import_diffusers()
    checked = 0
    with libraries.suppress_warnings():
        classes = text_to_image()
        assert len(classes) > 50
        for cls in classes:
            for name, kinds in cls._get_signature_types().items():
                for kind in kinds:
                    if pair := named(kind):
                        (tmp_path / "model_index.json").write_text(json.dumps({name: pair}))
                        component_check.check_components(tmp_path, trust_remote_code=False)
                        checked += 1
    assert checked > 250


@pytest.mark.full
def test_which_pipelines_cast_a_network_in_a_run() -> None:
    """As configs tells of them; what moves but is not cast may stay."""
    import re

    from t2i_cli.models.diffusers_folder import _UPCASTS

    libraries.import_diffusers()
    casts = re.compile(r"self\.\w+\.(float|half|bfloat16|to)\((\)|.*(dtype|torch\.\w*float))")
    with libraries.suppress_warnings():
        found = {
            cls.__name__
            for cls in text_to_image()
            if any(
                re.search(r"self\.(vae|vqvae|movq|unet|transformer|text_encoder\w*)\.", line)
                and casts.search(line)
                for line in inspect.getsource(sys.modules[cls.__module__]).splitlines()
            )
        }
    settled = {name for name in found if _UPCASTS.search(name)} | {"BriaPipeline"}
    assert found == settled
    assert len(found) > 3
