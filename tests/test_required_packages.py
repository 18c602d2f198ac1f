"""Packages that a class needs are named before a download, with what brings them."""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest

from t2i_cli.errors import ModelError
from t2i_cli.models import library_source, required_packages
from tests import tiny_models
from tests.conftest import T2I
from tests.fakes.hub import FakeHub, Repo

WITHOUT = ("torchvision", "ftfy", "sentencepiece", "cosmos_guardrail", "bs4", "torchao", "timm")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if none of the packages were installed, whatever is."""
    folder: Callable[[str], Path | None] = library_source.package_folder

    def without(package: str) -> Path | None:
        return None if package in WITHOUT else folder(package)

    monkeypatch.setattr(library_source, "package_folder", without)
    required_packages.missing_for_class.cache_clear()


@pytest.mark.parametrize(
    ("library", "name", "missing"),
    [
        ("diffusers", "OmniGenPipeline", ("torchvision",)),
        ("diffusers", "PRXPixelPipeline", ("ftfy",)),
        ("diffusers", "Cosmos2TextToImagePipeline", ("cosmos_guardrail",)),
        ("transformers", "Qwen3VLProcessor", ("torchvision",)),
        # They ask again where they use it, or can do without.
        ("diffusers", "PixArtSigmaPipeline", ()),
        ("diffusers", "StableDiffusionPipeline", ()),
        ("diffusers", "WanPipeline", ()),
        ("transformers", "CLIPImageProcessor", ()),
        ("diffusers", "NoSuchPipeline", ()),
    ],
)
def test_what_a_class_needs_is_read_from_its_source(
    library: str, name: str, missing: tuple[str, ...]
) -> None:
    assert required_packages.missing_for_class(library, name) == missing


def test_a_stand_in_of_diffusers_says_what_the_class_needs() -> None:
    assert "sentencepiece" in required_packages._stand_in_backends("KolorsPipeline")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": {"quant_method": "torchao"}}, "torchao"),
        ({"quantization_config": {"quant_method": "no such"}}, None),
    ],
)
def test_quantised_weights_need_their_package(
    change: dict[str, object], said: str | None, tmp_path: Path
) -> None:
    folder = tiny_models.copy_postcard(tmp_path / "model")
    tiny_models.edit_json(folder / "unet/config.json", **change)
    if said is None:
        required_packages.check_packages(folder, "StableDiffusionPipeline")
        return
    with pytest.raises(ModelError, match=f"unet needs {said}, which is not installed") as caught:
        required_packages.check_packages(folder, "StableDiffusionPipeline")
    assert "t2i-cli[families]" in str(caught.value.hint)


def test_a_vocabulary_of_sentencepiece_alone_needs_it(tmp_path: Path) -> None:
    folder = tiny_models.copy_postcard(tmp_path / "model")
    (folder / "tokenizer/tokenizer.json").rename(folder / "tokenizer/spiece.model")
    with pytest.raises(ModelError, match="tokenizer needs sentencepiece, which is not"):
        required_packages.check_packages(folder, "StableDiffusionPipeline")


@pytest.mark.parametrize(
    ("torch", "vision", "wants", "said"),
    [
        ("2.13.0+cpu", "0.29.1", "2.13.0", "another build"),
        ("2.13.0", "0.29.1", "2.13.0", None),
        ("2.13.0+cu126", "0.29.1+cu126", "2.13.0", None),
        ("2.13.0+cpu", "0.28.0+cpu", "2.12.0", "is for torch 2.12.0"),
    ],
)
def test_a_torchvision_that_does_not_match_is_told(
    torch: str, vision: str, wants: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"torch": torch, "torchvision": vision}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["numpy", f"torch=={wants}"])
    reason = required_packages.torchvision_mismatch()
    assert reason is None if said is None else said in str(reason)
    index = "--index-url https://download.pytorch.org/whl/cpu" in required_packages.install_hint(
        "torchvision"
    )
    assert index == torch.endswith("+cpu")


def test_the_doctor_names_a_torchvision_of_another_build(
    t2i: T2I, t2i_env: dict[str, str], tmp_path: Path
) -> None:
    info = tmp_path / "site/torchvision-0.29.9+cu999.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.29.9+cu999\n"
    )
    done = t2i("doctor", env={"PYTHONPATH": str(info.parent)})
    assert done.returncode == 9
    assert "torchvision 0.29.9+cu999 is another build than torch" in done.stdout


def test_a_missing_package_is_named_before_a_download(
    t2i: T2I, hub: FakeHub, tmp_path: Path
) -> None:
    folder = tiny_models.copy_postcard(tmp_path / "model")
    tiny_models.edit_json(folder / "unet/config.json", quantization_config={"quant_method": "hqq"})
    hub.repos["ann/quantised"] = Repo.from_folder(folder)
    done = t2i("generate", "x", "-m", "ann/quantised", env=hub.environment)
    assert done.returncode == 9, done.stderr
    assert "StableDiffusionPipeline's unet needs hqq, which is not installed." in done.stderr
    assert "`pip install hqq` brings it." in done.stderr
    assert not [path for path in hub.fetched() if path.endswith(".safetensors")]
