"""Weights on disk: their sizes from headers alone, and what is wrong with unsound ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2i_cli import postcard
from t2i_cli.errors import ModelError
from t2i_cli.files import weight_files
from t2i_cli.models import class_facts, libraries, sources, weights
from tests import tiny_models

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may damage."""
    return tiny_models.copy_postcard(tmp_path / "model")


def test_sizes_are_those_of_the_tensors() -> None:
    found = weights.read_weight_headers(postcard.FOLDER, "float32")
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
        weights.read_weight_headers(folder, "float32")


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"junk" * 9])
def test_a_damaged_file_is_named(folder: Path, content: bytes) -> None:
    (folder / UNET).write_bytes(content)
    with pytest.raises(ModelError, match=r"unet/.*safetensors is damaged"):
        weights.read_weight_headers(folder, "float32")


def test_pickle_only_is_refused(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"unet are pickle files only") as caught:
        weights.read_weight_headers(folder, "float32")
    assert "safetensors" in str(caught.value.hint)


def test_missing_weights_and_folders_are_named(folder: Path) -> None:
    (folder / UNET).unlink()
    with pytest.raises(ModelError, match="unet holds no weights"):
        weights.read_weight_headers(folder, "float32")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ModelError, match="has no tokenizer folder"):
        weights.read_weight_headers(folder, "float32")


def test_the_safety_checker_can_be_left_out(folder: Path) -> None:
    tiny_models.edit_json(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    )
    with pytest.raises(ModelError, match="has no safety_checker folder"):
        weights.read_weight_headers(folder, "float32")
    assert "unet" in weights.read_weight_headers(
        folder, "float32", skip=frozenset({"safety_checker"})
    )


def test_half_precision_prefers_the_fp16_variant(folder: Path) -> None:
    save_file({"w": torch.zeros(3)}, folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert weights.read_weight_headers(folder, "float16")["unet"].elements == {"F32": 3}
    assert weights.read_weight_headers(folder, "float32")["unet"].elements != {"F32": 3}
    assert sources.chosen_variants(folder, "float16").get("unet") == "fp16"
    assert sources.chosen_variants(folder, "float32").get("unet") is None
    (folder / UNET).unlink()
    assert sources.chosen_variants(folder, "float32").get("unet") == "fp16"


def test_a_folder_is_read_as_a_repository_is(folder: Path) -> None:
    """Shards with the variant after their number, as older repositories have them."""
    (folder / UNET).unlink()
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.fp16.safetensors" for n in (1, 2)]
    for name in names:
        save_file({"w": torch.zeros(5, dtype=torch.float16)}, folder / "unet" / name)
    with pytest.raises(ModelError, match="unet has no index of its weight files"):
        weights.read_weight_headers(folder, "float16")
    index = folder / "unet/diffusion_pytorch_model.safetensors.fp16.index.json"
    index.write_text(json.dumps({"weight_map": {"x": names[0], "y": names[1]}}))
    assert weights.read_weight_headers(folder, "float32")["unet"].elements == {"F16": 10}
    assert sources.chosen_variants(folder, "float32").get("unet") == "fp16"


def test_shards_are_added_up_and_missed(folder: Path) -> None:
    (folder / UNET).unlink()
    names = ["a.safetensors", "b.safetensors"]
    for name in names:
        save_file({"w": torch.zeros(5, dtype=torch.bfloat16)}, folder / "unet" / name)
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": names[0], "y": names[1], "z": names[0]}}))
    assert weights.read_weight_headers(folder, "float32")["unet"].elements == {"BF16": 10}
    (folder / "unet" / names[1]).unlink()
    with pytest.raises(ModelError, match=r"incomplete: .*b\.safetensors is missing"):
        weights.read_weight_headers(folder, "float32")
    index.write_text("{}")
    with pytest.raises(ModelError, match="names no weight files"):
        weights.read_weight_headers(folder, "float32")


@pytest.mark.parametrize(
    ("dtype", "present", "chosen"),
    [
        ("float16", (None, "fp16", "bf16"), "fp16"),
        ("bfloat16", (None, "fp16", "bf16"), "bf16"),
        ("float32", (None, "fp16", "bf16"), None),
        ("bfloat16", (None, "fp16"), None),
        ("float16", (None, "non_ema"), None),
        ("float32", ("non_ema", "fp16"), "fp16"),
        ("float16", ("ema", "non_ema"), "ema"),
        ("float32", ("bf16",), "bf16"),
        ("float32", ("non_ema",), "non_ema"),
    ],
)
def test_the_variant_is_the_dtypes_own_or_none_or_the_only_one(
    dtype: str, present: tuple[str | None, ...], chosen: str | None
) -> None:
    names = [f"model.{each}.safetensors" if each else "model.safetensors" for each in present]
    found = weight_files.choose_weights(names, dtype)
    assert found is not None
    assert found.variant == chosen


def test_what_lacks_shards_is_loaded_only_if_nothing_else_is_there() -> None:
    half = ["model.fp16-00001-of-00002.safetensors", "model.safetensors.index.fp16.json"]
    found = weight_files.choose_weights([*half, "model.safetensors"], "float16")
    assert found is not None
    assert found.variant is None


def test_each_component_is_loaded_from_its_own_variant(folder: Path) -> None:
    """The UNet has shards of two variants, the VAE one file and a name without a dot."""
    cls = libraries.import_pipeline_class("StableDiffusionPipeline")
    with libraries.suppress_warnings():
        pipe = cls.from_pretrained(folder, local_files_only=True)
        weight = pipe.unet.conv_in.weight
        for variant, value in (("fp16", 0.25), ("bf16", 0.5), ("non_ema", 0.75)):
            torch.nn.init.constant_(weight, value)
            pipe.unet.save_pretrained(folder / "unet", variant=variant, max_shard_size="100KB")
        (folder / "vae/LICENSE").write_text("free")
        (folder / "text_encoder/model.safetensors").rename(
            folder / "text_encoder/model.fp16.safetensors"
        )
        assert list((folder / "unet").glob("*.fp16-00001-of-*.safetensors")), "no shards"
        for dtype, value in (("float16", 0.25), ("bfloat16", 0.5), ("float32", 0.0)):
            variants = sources.chosen_variants(folder, dtype)
            assert variants.get("text_encoder") == "fp16"
            with libraries.component_variants(variants):
                loaded = cls.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            read = set(loaded.unet.conv_in.weight.flatten().tolist())
            assert read == {value} if value else len(read) > 1
            assert "unet" in weights.read_weight_headers(folder, dtype)


@pytest.mark.parametrize(
    ("library", "cls", "is_network"),
    [
        ("diffusers", "UNet2DConditionModel", True),
        ("transformers", "CLIPTextModel", True),
        ("stable_diffusion", "StableDiffusionSafetyChecker", True),
        ("diffusers", "AdaptiveProjectedMixGuidance", False),
        ("diffusers", "FlowMatchEulerDiscreteScheduler", False),
        ("transformers", "CLIPImageProcessorPil", False),
        ("transformers", "CLIPFeatureExtractor", False),
        ("transformers", "T5TokenizerFast", False),
        ("transformers", "Qwen2VLProcessor", False),
        ("my_code", "MyTokenizer", None),
        ([1], {}, None),
    ],
)
def test_what_has_weights_is_known_by_the_class(
    library: str, cls: str, is_network: bool | None
) -> None:
    assert class_facts.is_network(library, cls) is is_network


def test_a_class_of_the_models_own_has_weights_if_they_lie_there(folder: Path) -> None:
    tiny_models.edit_json(
        folder / "model_index.json", unet=["my_unet", "Mine"], vae=["my_vae", "MyScheduler"]
    )
    for file in (folder / "vae").glob("*.safetensors"):
        file.unlink()
    assert [part.name for part in sources.networks(folder)] == ["text_encoder", "unet"]
