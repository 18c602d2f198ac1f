"""Models outside the catalogue: what is read from a folder, and which folders are refused."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from t2i_cli import hub
from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.errors import InputError, ModelError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog, class_facts, diffusers_folder, pipeline_task, resolution
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest
from tests import tiny_models

Family = Callable[[str], Path]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The folder of a family's tiny pipeline, made once."""
    root = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else tiny_models.save(name, root / name)

    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may change."""
    return tiny_models.copy_postcard(tmp_path / "model")


def describe(folder: Path) -> ModelSpec:
    return resolution.describe_folder(folder, "it", trust_remote_code=False)


def find(name: str | Path, revision: str | None = None) -> ModelSpec:
    return resolution.resolve_model(str(name), revision, offline=True, trust_remote_code=False)


def test_a_stable_diffusion_folder(folder: Path) -> None:
    assert describe(folder) == ModelSpec(
        name="it",
        folder=folder,
        pipeline="StableDiffusionPipeline",
        steps=50,
        guidance_scale=7.5,
        width=128,
        height=128,
        multiple=8,
        flow=False,
    )


def test_an_sdxl_folder(family: Family) -> None:
    spec = describe(family("sdxl"))
    assert (spec.pipeline, spec.guidance_scale) == ("StableDiffusionXLPipeline", 5.0)
    assert (spec.width, spec.height, spec.multiple, spec.flow) == (32, 32, 8, False)
    assert spec.negative_prompt


def test_a_flow_matching_folder(family: Family) -> None:
    spec = describe(family("sd3"))
    assert (spec.steps, spec.guidance_scale, spec.multiple, spec.flow) == (28, 7.0, 16, True)


def test_flux_takes_guidance_and_no_negative_prompt(family: Family) -> None:
    spec = describe(family("flux"))
    assert (spec.steps, spec.guidance_argument, spec.guidance_scale) == (28, "guidance_scale", 3.5)
    assert not spec.negative_prompt
    assert (spec.width, spec.height) == (1024, 1024)


@pytest.mark.parametrize("name", ["flux", "flux-kontext", "sana-sprint"])
def test_a_scale_that_a_network_does_not_take_in_is_no_guidance(
    family: Family, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(family(name), tmp_path / "schnell")
    config = folder / "transformer/config.json"
    assert describe(folder).guidance_argument == "guidance_scale"
    tiny_models.edit_json(config, guidance_embeds=False)
    spec = describe(folder)
    assert (spec.guidance_argument, spec.guidance_scale) == (None, None)
    assert not spec.negative_prompt
    with pytest.raises(InputError, match="it takes no guidance scale"):
        resolve_request(GenerateRequest(prompt="a star", guidance_scale=3.0), spec)
    # A config that does not say so has its class's own default.
    kept = json.loads(config.read_text())
    del kept["guidance_embeds"]
    config.write_text(json.dumps(kept))
    assert describe(folder).guidance_argument is None


@pytest.mark.parametrize(
    ("name", "argument", "scale"),
    [
        ("sana", "guidance_scale", 4.5),
        ("bria", "guidance_scale", 5),
        ("qwen-image", "true_cfg_scale", 4.0),
        ("flux2-klein", "guidance_scale", 4.0),
        ("flux2-klein-distilled", None, None),
    ],
)
def test_a_network_without_an_embedding_is_guided_all_the_same(
    family: Family, name: str, argument: str | None, scale: float | None
) -> None:
    folder = family(name)
    assert diffusers_folder.component_config(folder, "transformer")["guidance_embeds"] is False
    spec = describe(folder)
    assert (spec.guidance_argument, spec.guidance_scale) == (argument, scale)


def test_guidance_acts_from_where_the_pipelines_say() -> None:
    import diffusers

    said = {}
    for name in filter(re.compile(r"\w+Pipeline").fullmatch, dir(diffusers)):
        # Some need libraries that are not here; some look at their networks as well.
        with suppress(ImportError, AttributeError):
            cls = getattr(diffusers, name)
            guided = cls.do_classifier_free_guidance
            if pipeline_task.other_task(class_facts.facts_of_class(cls)) is None:
                said[name] = guided.fget(SimpleNamespace(_guidance_scale=0.5))
    assert len(said) > 20
    assert {name for name, acts in said.items() if acts} == {
        name for name in said if resolution._GUIDED_FROM_ZERO.match(name)
    }


def test_a_pixart_folder(family: Family) -> None:
    spec = describe(family("pixart"))
    assert (spec.steps, spec.width, spec.multiple, spec.flow) == (20, 256, 16, False)


@pytest.mark.parametrize(
    ("pipeline", "argument", "scale", "off", "negative"),
    [
        ("QwenImagePipeline", "true_cfg_scale", 4.0, 1.0, True),
        ("ZImagePipeline", "guidance_scale", 5.0, 0.0, True),
        ("Flux2Pipeline", "guidance_scale", 4.0, 1.0, False),
        ("LatentConsistencyModelPipeline", "guidance_scale", 8.5, 1.0, False),
        ("SanaPipeline", "guidance_scale", 4.5, 1.0, True),
        ("HunyuanDiTPipeline", "guidance_scale", 5.0, 1.0, True),
    ],
)
def test_guidance_is_read_from_the_pipeline(
    folder: Path, pipeline: str, argument: str, scale: float, off: float, negative: bool
) -> None:
    tiny_models.edit_json(folder / "model_index.json", _class_name=pipeline)
    spec = describe(folder)
    assert (spec.guidance_argument, spec.guidance_scale) == (argument, scale)
    assert (spec.guidance_off, spec.negative_prompt) == (off, negative)


def test_a_guidance_embedding_leaves_no_negative_prompt(folder: Path) -> None:
    tiny_models.edit_json(folder / "unet/config.json", time_cond_proj_dim=256)
    assert not describe(folder).negative_prompt


def test_a_scheduler_that_cannot_be_changed(folder: Path) -> None:
    tiny_models.edit_json(folder / "scheduler/scheduler_config.json", _class_name="DDPMWuerstchen")
    assert describe(folder).flow is None


@pytest.mark.parametrize(
    ("pipeline", "task"),
    [
        ("StableDiffusionControlNetPipeline", "needs an image for its controlnet"),
        ("FluxControlPipeline", "needs control_image"),
        ("StableDiffusionUpscalePipeline", "needs image"),
        ("StableDiffusionGLIGENPipeline", "needs gligen_phrases"),
        ("StableDiffusionLDM3DPipeline", "makes a depth map beside the picture"),
        ("StableVideoDiffusionPipeline", "makes videos"),
        ("WanPipeline", "makes videos"),
        ("AudioLDM2Pipeline", "makes sound"),
        ("DDPMPipeline", "takes no height and prompt"),
        ("KandinskyV22PriorPipeline", "makes embeddings for another pipeline"),
        ("QwenImageEditPipeline", "needs image"),
    ],
)
def test_what_is_not_text_to_image_is_refused(folder: Path, pipeline: str, task: str) -> None:
    tiny_models.edit_json(folder / "model_index.json", _class_name=pipeline)
    refused = f"{pipeline}, which does not make images from text alone: it {task}"
    with pytest.raises(ModelError, match=refused):
        describe(folder)


@pytest.mark.parametrize(
    "pipeline",
    ["BriaFibo2Pipeline", "Flux2KleinKVPipeline", "StableDiffusionModelEditingPipeline"],
)
def test_an_input_that_may_be_left_out_and_a_name_refuse_nothing(
    folder: Path, pipeline: str
) -> None:
    tiny_models.edit_json(folder / "model_index.json", _class_name=pipeline)
    assert describe(folder).pipeline == pipeline


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is empty"):
        find(tmp_path)


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v1-5.safetensors").touch()
    with pytest.raises(ModelError, match="holds single files of weights"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("unet", "sample_size", []),
        ("unet", "sample_size", [16]),
        ("unet", "sample_size", "16"),
        ("unet", "sample_size", True),
        ("unet", "block_out_channels", "x"),
        ("unet", "block_out_channels", -1),
        ("unet", "block_out_channels", [[1]]),
        ("vae", "block_out_channels", 5),
        ("vae", "sample_size", 1e308),
        ("vae", "spatial_compression_ratio", [1]),
        ("vae", "temperal_downsample", -1),
    ],
)
def test_a_size_that_is_none_is_refused(
    folder: Path, component: str, key: str, value: object
) -> None:
    tiny_models.edit_json(folder / component / "config.json", **{key: value})
    backend = LocalBackend(LocalOptions(device="cpu"))
    with pytest.raises(ModelError, match=rf"config\.json is damaged: its {key} cannot be "):
        spec = backend.describe(GenerateRequest(prompt="a", model=str(folder)))
        backend.check(resolve_request(GenerateRequest(prompt="a", seed=1), spec))


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_damaged_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(ModelError, match=r"model_index\.json is damaged"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("named", "complaint"),
    [
        ("FutureDiffusionPipeline", r"FutureDiffusionPipeline, which diffusers [\d.]+ does not"),
        (None, "names no pipeline class"),
        (["pipeline", "Own"], r"runs code of its own \(pipeline\.py\)"),
    ],
)
def test_a_pipeline_that_is_not_there_is_refused(
    folder: Path, named: object, complaint: str
) -> None:
    tiny_models.edit_json(folder / "model_index.json", _class_name=named)
    with pytest.raises(ModelError, match=complaint):
        describe(folder)


def test_a_models_own_code_runs_where_it_is_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    tiny_models.edit_json(folder / "model_index.json", _class_name=["pipeline", "OwnPipeline"])
    code = folder / "pipeline.py"
    code.write_text(
        "from diffusers import StableDiffusionPipeline\n\n\n"
        "class OwnPipeline(StableDiffusionPipeline):\n    pass\n"
    )
    spec = resolution.describe_folder(folder, "it", trust_remote_code=True)
    assert (spec.pipeline, spec.width) == ("OwnPipeline", 128)
    code.write_text("raise KeyError('gone')")
    with pytest.raises(ModelError, match=r"own code .*pipeline\.py failed: 'gone'"):
        resolution.describe_folder(folder, "it", trust_remote_code=True)


def test_catalogue_names_need_no_folder() -> None:
    assert find("sdxl") is catalog.MODELS["sdxl"]
    assert find("sdxl", "v2").revision == "v2"


def test_a_repository_is_described_by_its_configs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch_configs(repo: str, *, revision: str | None, offline: bool) -> Path:
        asked.append((repo, revision, offline))
        return folder

    monkeypatch.setattr(hub, "fetch_configs", fetch_configs)
    spec = find("someone/a.model", "main")
    assert asked == [("someone/a.model", "main", True)]
    assert (spec.repo, spec.folder, spec.revision) == ("someone/a.model", None, "main")
    assert spec.pipeline == "StableDiffusionPipeline"


@pytest.mark.parametrize("name", ["./nowhere", "~/nowhere", "/no/such/folder", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=f"There is no file or folder {name}"):
        find(name)


def test_an_unknown_name_finds_a_near_one() -> None:
    with pytest.raises(ModelError, match="'sdx1' is unknown") as caught:
        find("sdx1")
    assert "Did you mean sdxl?" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["postcard", "."])
def test_a_folder_has_no_revisions(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="no revisions"):
        find(name, "main")
