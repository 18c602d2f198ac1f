"""Which files of a repository are needed."""

import json

import pytest

from t2i_cli.errors import ModelError
from t2i_cli.hub import files
from tests.fakes.models import CONFIGS, FULL, HALF, TEXT, repository

INDEX = json.loads(repository()["model_index.json"])


def needed(paths: list[str], dtype: str = "float32") -> set[str]:
    found = files.needed_files("a/b", {"unet": ["diffusers", "UNet"]}, paths, dtype)
    return set(found) - {files.MODEL_INDEX}


def test_configs_are_small_files_of_components() -> None:
    assert set(files.config_files(INDEX, repository())) == CONFIGS


@pytest.mark.parametrize(("dtype", "unet"), [("float32", FULL), ("float16", HALF)])
def test_needs_one_variant_and_no_other_format(dtype: str, unet: str) -> None:
    found = files.needed_files("a/b", INDEX, repository(), dtype)
    assert len(found) == len(set(found))
    assert set(found) == CONFIGS | {unet, TEXT}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_takes_the_variant_that_there_is(dtype: str) -> None:
    assert needed([HALF], dtype) == {HALF}
    assert needed([FULL], dtype) == {FULL}


def test_takes_shards_with_the_index_of_their_variant() -> None:
    full = [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    half = [f"unet/diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    half_index = "unet/diffusion_pytorch_model.safetensors.index.fp16.json"
    paths = [*full, *half, index, half_index]
    assert needed(paths) == {*full, index}
    assert needed(paths, dtype="float16") == {*half, half_index}


def test_takes_shards_named_the_old_way() -> None:
    half = [f"unet/model-0000{n}-of-00002.fp16.safetensors" for n in (1, 2)]
    index = "unet/model.safetensors.fp16.index.json"
    assert needed([*half, index, FULL], dtype="float16") == {*half, index}


def test_takes_one_of_two_ways_to_name_the_same_shards() -> None:
    new = [f"unet/model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    old = [f"unet/model-0000{n}-of-00002.fp16.safetensors" for n in (1, 2)]
    assert needed([*old, *new], dtype="float16") == set(new)


def test_takes_whole_files_for_both_libraries_and_no_shards_beside_them() -> None:
    both = ["unet/model.safetensors", FULL]
    shards = [f"unet/model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert needed([*both, *shards, "unet/model.safetensors.index.json"]) == set(both)


def test_an_index_without_its_shards_is_no_weights() -> None:
    with pytest.raises(ModelError, match="pickle"):
        needed(["unet/model.safetensors.index.json", "unet/pytorch_model.bin"])


def test_leaves_other_variants() -> None:
    assert needed([FULL, "unet/diffusion_pytorch_model.non_ema.safetensors"]) == {FULL}


def test_each_component_has_the_variant_that_there_is() -> None:
    index = {"unet": ["diffusers", "UNet"], "vae": ["diffusers", "AutoencoderKL"]}
    half = "unet/diffusion_pytorch_model.bf16.safetensors"
    vae = "vae/diffusion_pytorch_model.safetensors"
    paths = [FULL, HALF, half, vae]
    for dtype, unet in (("float32", FULL), ("float16", HALF), ("bfloat16", half)):
        found = files.needed_files("a/b", index, paths, dtype)
        assert set(found) == {files.MODEL_INDEX, unet, vae}


def test_refuses_missing_shards() -> None:
    with pytest.raises(ModelError, match="lacks 1 of 2"):
        needed(["unet/model-00001-of-00002.safetensors"])


def test_refuses_pickles_only() -> None:
    with pytest.raises(ModelError, match="unet as pickle files only"):
        needed(["unet/config.json", "unet/diffusion_pytorch_model.bin"])


def test_takes_code_only_where_the_pipeline_has_its_own() -> None:
    paths = ["pipeline.py", "setup.py", "unet/my_unet.py", "tools/run.py"]
    assert needed(paths) == {"unet/my_unet.py"}
    own = {"_class_name": ["pipeline", "MyPipeline"], "unet": ["my_unet", "MyUnet"]}
    assert {"pipeline.py", "unet/my_unet.py"} <= set(
        files.needed_files("a/b", own, paths, "float32")
    )
