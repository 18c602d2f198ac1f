"""Weights on disk: their sizes from headers alone, and what is wrong with unsound ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2i_cli import postcard
from t2i_cli.errors import ModelError
from t2i_cli.models import weights
from tests import tiny_models

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may damage."""
    return tiny_models.copy_postcard(tmp_path / "model")


def test_sizes_are_those_of_the_tensors() -> None:
    found = weights.read_weight_headers(postcard.FOLDER, half=False)
    assert set(found) == {"text_encoder", "unet", "vae"}
    count = sum(tensor.numel() for tensor in load_file(postcard.FOLDER / UNET).values())
    assert found["unet"].size("float32") == 4 * count
    assert found["unet"].size("bfloat16") == 2 * count


def test_quantised_weights_keep_their_size() -> None:
    mixed = weights.ComponentWeights(elements={"F16": 10, "I64": 2, "U8": 5, "F8_E4M3": 7})
    assert mixed.size("float32") == 40 + 16 + 5 + 7


def test_a_truncated_file_is_named(folder: Path) -> None:
    file = folder / UNET
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    with pytest.raises(ModelError, match=r"unet/.*safetensors is truncated: it has [\d,]+ of"):
        weights.read_weight_headers(folder, half=False)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"junk" * 9])
def test_a_damaged_file_is_named(folder: Path, content: bytes) -> None:
    (folder / UNET).write_bytes(content)
    with pytest.raises(ModelError, match=r"unet/.*safetensors is damaged"):
        weights.read_weight_headers(folder, half=False)


def test_pickle_only_is_refused(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"unet are pickle files only") as caught:
        weights.read_weight_headers(folder, half=False)
    assert "safetensors" in str(caught.value.hint)


def test_missing_weights_and_folders_are_named(folder: Path) -> None:
    (folder / UNET).unlink()
    with pytest.raises(ModelError, match="unet holds no weights"):
        weights.read_weight_headers(folder, half=False)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ModelError, match="has no tokenizer folder"):
        weights.read_weight_headers(folder, half=False)


def test_the_safety_checker_can_be_left_out(folder: Path) -> None:
    tiny_models.edit_json(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    )
    with pytest.raises(ModelError, match="has no safety_checker folder"):
        weights.read_weight_headers(folder, half=False)
    assert "unet" in weights.read_weight_headers(
        folder, half=False, skip=frozenset({"safety_checker"})
    )


def test_half_precision_prefers_the_fp16_variant(folder: Path) -> None:
    save_file({"w": torch.zeros(3)}, folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert weights.read_weight_headers(folder, half=True)["unet"].elements == {"F32": 3}
    assert weights.read_weight_headers(folder, half=False)["unet"].elements != {"F32": 3}
    assert weights.find_variant(folder, half=True) == "fp16"
    assert weights.find_variant(folder, half=False) is None
    (folder / UNET).unlink()
    assert weights.find_variant(folder, half=False) == "fp16"


def test_a_folder_is_read_as_a_repository_is(folder: Path) -> None:
    """Shards with the variant after their number, as older repositories have them."""
    (folder / UNET).unlink()
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.fp16.safetensors" for n in (1, 2)]
    for name in names:
        save_file({"w": torch.zeros(5, dtype=torch.float16)}, folder / "unet" / name)
    with pytest.raises(ModelError, match="unet has no index of its weight files"):
        weights.read_weight_headers(folder, half=True)
    index = folder / "unet/diffusion_pytorch_model.safetensors.fp16.index.json"
    index.write_text(json.dumps({"weight_map": {"x": names[0], "y": names[1]}}))
    assert weights.read_weight_headers(folder, half=False)["unet"].elements == {"F16": 10}
    assert weights.find_variant(folder, half=False) == "fp16"


def test_shards_are_added_up_and_missed(folder: Path) -> None:
    (folder / UNET).unlink()
    names = ["a.safetensors", "b.safetensors"]
    for name in names:
        save_file({"w": torch.zeros(5, dtype=torch.bfloat16)}, folder / "unet" / name)
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": names[0], "y": names[1], "z": names[0]}}))
    assert weights.read_weight_headers(folder, half=False)["unet"].elements == {"BF16": 10}
    (folder / "unet" / names[1]).unlink()
    with pytest.raises(ModelError, match=r"incomplete: .*b\.safetensors is missing"):
        weights.read_weight_headers(folder, half=False)
    index.write_text("{}")
    with pytest.raises(ModelError, match="names no weight files"):
        weights.read_weight_headers(folder, half=False)
