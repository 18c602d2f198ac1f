"""What `-m` names, and what it is told to be where it is no model: here and on the Hub."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from t2i_cli.errors import InputError, ModelError
from t2i_cli.models import catalog, class_facts, resolution, sources
from tests import tiny_models
from tests.conftest import T2I
from tests.fakes.hub import FakeHub, Repo

NO_MODELS: dict[str, tuple[Mapping[str, object], str]] = {
    "modular": ({"modular_model_index.json": {}}, "is a modular model (modular_model_index.json)"),
    "adapter": ({"adapter_config.json": {}, "adapter_model.safetensors": 1}, "holds a LoRA"),
    "lora": ({"pytorch_lora_weights.safetensors": 1, "README.md": 1}, "holds a LoRA"),
    "controlnet": (
        {"config.json": {"_class_name": "ControlNetModel"}, "model.safetensors": 1},
        "holds a ControlNet (ControlNetModel)",
    ),
    "part": ({"config.json": {"_class_name": "AutoencoderKL"}}, "holds one part of a model"),
    "gguf": ({"flux-Q4.gguf": 1, "flux-Q8.gguf": 1}, "holds weights in GGUF files only (flux-Q4"),
    "language": (
        {"config.json": {"architectures": ["LlamaForCausalLM"]}, "model.safetensors": 1},
        "holds a model of transformers (LlamaForCausalLM)",
    ),
    "checkpoint": ({"v1.safetensors": 1}, "holds single files of weights (v1.safetensors)"),
    "nothing": ({"README.md": 1}, "model_index.json"),
    "damaged": ({"config.json": [1]}, "model_index.json"),
}
"""Files by name, with their JSON or 1 for others, and what is said of them."""


def written(folder: Path, content: Mapping[str, object]) -> Path:
    folder.mkdir()
    for name, value in content.items():
        (folder / name).write_text("x" if value == 1 else json.dumps(value))
    return folder


@pytest.mark.parametrize("case", NO_MODELS)
def test_what_is_no_diffusers_model_is_told_as_what_it_is(case: str, tmp_path: Path) -> None:
    content, said = NO_MODELS[case]
    folder = written(tmp_path / "model", content)
    with pytest.raises(ModelError) as caught:
        resolution.describe_folder(folder, str(folder), trust_remote_code=False)
    assert said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("case", ["modular", "controlnet", "gguf", "language"])
def test_a_repository_is_told_as_a_folder_is(
    case: str, t2i: T2I, hub: FakeHub, tmp_path: Path
) -> None:
    content, said = NO_MODELS[case]
    hub.repos["ann/other"] = Repo.from_folder(written(tmp_path / "model", content))
    for where, env in ((str(tmp_path / "model"), {}), ("ann/other", hub.environment)):
        done = t2i("generate", "x", "-m", where, "--dry-run", env=env)
        assert done.returncode == 9, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert not [path for path in hub.fetched() if path.endswith(".safetensors")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_models.copy_postcard(tmp_path / "model")


@pytest.mark.parametrize(
    ("named", "used"),
    [
        ("StableDiffusionImg2ImgPipeline", "StableDiffusionPipeline"),
        ("StableDiffusionInpaintPipeline", "StableDiffusionPipeline"),
        ("FluxInpaintPipeline", "FluxPipeline"),
        ("KolorsImg2ImgPipeline", "KolorsPipeline"),
        # Text-to-image already, or of weights that are for another task alone.
        ("FluxKontextPipeline", "FluxKontextPipeline"),
        ("QwenImageEditPipeline", "QwenImageEditPipeline"),
        ("FluxFillPipeline", "FluxFillPipeline"),
    ],
)
def test_the_text_to_image_class_is_diffusers_own_choice(named: str, used: str) -> None:
    assert class_facts.text_to_image_class(named) == used


def test_a_model_for_given_images_makes_images_from_text_with_one_note(
    folder: Path, t2i: T2I, tmp_path: Path
) -> None:
    tiny_models.edit_json(folder / "model_index.json", _class_name="StableDiffusionImg2ImgPipeline")
    options = ["a red star", "--steps", "1", "--seed", "1", "-o"]
    done = t2i("generate", *options, str(tmp_path / "a.png"), "-m", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("names StableDiffusionImg2ImgPipeline") == 1
    tiny_models.edit_json(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    t2i("generate", *options, str(tmp_path / "b.png"), "-m", str(folder))
    pictures = [Image.open(tmp_path / f"{name}.png").tobytes() for name in "ab"]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("named", ["StableDiffusionInpaintPipeline", "StableDiffusionPipeline"])
def test_an_inpainting_network_is_refused_as_what_it_is(named: str, folder: Path, t2i: T2I) -> None:
    tiny_models.edit_json(folder / "model_index.json", _class_name=named)
    latent = json.loads((folder / "vae/config.json").read_text())["latent_channels"]
    tiny_models.edit_json(folder / "unet/config.json", in_channels=2 * latent + 1)
    done = t2i("generate", "x", "-m", str(folder), "--dry-run")
    assert done.returncode == 9
    assert f"is an inpainting model ({named}): its UNet takes {2 * latent + 1}" in done.stderr


def test_a_refiner_is_refused_as_what_it_is(folder: Path) -> None:
    tiny_models.edit_json(
        folder / "model_index.json",
        _class_name="StableDiffusionXLImg2ImgPipeline",
        requires_aesthetics_score=True,
    )
    with pytest.raises(ModelError, match="is a refiner"):
        sources.used_class_path(folder)


def test_a_repositorys_folder_in_the_cache_is_its_snapshot(folder: Path, t2i: T2I) -> None:
    cache = folder.parent / "hub"
    root = cache / "models--ann--picture"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(folder, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs/main").write_text("a" * 40)
    assert catalog.folder_named(str(root)) == root / "snapshots" / ("a" * 40)
    done = t2i("generate", "x", "-m", str(root), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    done = t2i("generate", "x", "-m", str(cache), "--dry-run")
    assert done.returncode == 9
    assert "is a cache of the Hub" in done.stderr
    assert "such as ann/picture" in done.stderr


def test_an_empty_cache_folder_is_no_model(tmp_path: Path, t2i: T2I) -> None:
    (tmp_path / "models--ann--picture/snapshots").mkdir(parents=True)
    done = t2i("generate", "x", "-m", str(tmp_path / "models--ann--picture"), "--dry-run")
    assert done.returncode == 9
    assert "has no model_index.json" in done.stderr


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("https://huggingface.co/ann/pic.1", ("ann/pic.1", None)),
        ("https://huggingface.co/ann/pic/", ("ann/pic", None)),
        ("https://huggingface.co/ann/pic?library=diffusers", ("ann/pic", None)),
        ("http://www.hf.co/ann/pic/tree/v1", ("ann/pic", "v1")),
        ("huggingface.co/ann/pic/tree/refs%2Fpr%2F3", ("ann/pic", "refs/pr/3")),
        ("ann/pic", ("ann/pic", None)),
        ("ann/pic@v1", ("ann/pic", "v1")),
        ("sdxl@v1", ("sdxl", "v1")),
        (
            "https://huggingface.co/ann/pic/resolve/main/unet/a.safetensors?x=1",
            ("ann/pic/unet/a.safetensors", "main"),
        ),
        ("./huggingface.co/ann/pic", ("./huggingface.co/ann/pic", None)),
        ("https://example.org/ann/pic", ("https://example.org/ann/pic", None)),
    ],
)
def test_an_address_of_the_hub_names_a_repository(
    address: str, named: tuple[str, str | None]
) -> None:
    assert catalog.parse_address(address) == named


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://huggingface.co/ann/pic/blob/main/README.md", "a file that holds no weights in"),
        ("https://huggingface.co/ann/pic/tree/main/unet", "address of a folder in ann/pic"),
        ("https://huggingface.co/datasets/ann/pic", "the address of no model"),
        ("https://huggingface.co", "the address of no model"),
    ],
)
def test_an_address_of_something_else_is_told(address: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        catalog.parse_address(address)
    assert caught.value.hint


def test_two_revisions_are_one_too_many() -> None:
    with pytest.raises(InputError, match="names the revision v1, and --revision v2"):
        catalog.parse_address("https://huggingface.co/ann/pic/tree/v1", "v2")


def test_an_address_is_taken_by_every_command(t2i: T2I, hub: FakeHub, folder: Path) -> None:
    hub.repos["ann/picture"] = Repo.from_folder(folder)
    address = f"{hub.url}/ann/picture/tree/v1"
    done = t2i("generate", "x", "-m", address, "--dry-run", "--json", env=hub.environment)
    assert done.returncode == 0, done.stderr
    (request,) = json.loads(done.stdout)["requests"]
    assert (request["model"], request["revision"]) == ("ann/picture", "v1")
    done = t2i("models", "pull", address, env=hub.environment)
    assert done.returncode == 0, done.stderr
    for name, said in (
        ("ann/picture/unet/a.safetensors", "ann/picture has no file unet/a.safetensors"),
        ("https://example.org/ann/picture", "is an address, and no model of the Hub"),
    ):
        done = t2i("generate", "x", "-m", name, "--dry-run", env=hub.environment)
        assert done.returncode == 9, done.stderr
        assert said in done.stderr


def test_own_code_is_named_before_a_download(t2i: T2I, hub: FakeHub, folder: Path) -> None:
    for change, said in (
        ({"_class_name": ["pipeline", "MyPipeline"]}, "runs code of its own (pipeline.py)"),
        ({"unet": ["my_unet", "MyUnet"]}, "runs code of its own (unet/my_unet.py)"),
    ):
        own = folder.parent / next(iter(change))
        shutil.copytree(folder, own)
        tiny_models.edit_json(own / "model_index.json", **change)
        (own / "pipeline.py").write_text("")
        (own / "unet/my_unet.py").write_text("")
        hub.repos["ann/own"] = Repo.from_folder(own)
        for where, env in ((str(own), {}), ("ann/own", hub.environment)):
            done = t2i("generate", "x", "-m", where, "--dry-run", env=env)
            assert done.returncode == 9, done.stderr
            assert said in done.stderr
            assert "--trust-remote-code" in done.stderr
    assert not [path for path in hub.fetched() if path.endswith(".safetensors")]


def test_a_download_takes_the_chosen_variant_of_each_part_alone(
    t2i: T2I, hub: FakeHub, folder: Path, home: Path
) -> None:
    """The UNet has a variant of each dtype, the decoder none, and the encoder one alone."""
    weights = {path.parent.name: path for path in folder.glob("*/*.safetensors")}
    for variant in ("fp16", "bf16", "non_ema"):
        copy = weights["unet"].with_suffix(f".{variant}.safetensors")
        shutil.copyfile(weights["unet"], copy)
    weights["text_encoder"].rename(weights["text_encoder"].with_suffix(".fp16.safetensors"))
    hub.repos["ann/mixed"] = Repo.from_folder(folder)
    args = ["generate", "a star", "-m", "ann/mixed", "--steps", "1", "--dtype", "bfloat16"]
    done = t2i(*args, "-o", str(folder.parent / "a.png"), env=hub.environment)
    assert done.returncode == 0, done.stderr
    fetched = {path.name for path in home.glob("hf/hub/*/snapshots/*/*/*.safetensors")}
    assert fetched == {
        "model.fp16.safetensors",
        "diffusion_pytorch_model.bf16.safetensors",
        "diffusion_pytorch_model.safetensors",
    }
