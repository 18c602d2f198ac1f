"""Files of weights are recognised from their headers, and nothing that is none is read."""

import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i_cli.errors import InputError, ModelError, T2IError
from t2i_cli.models import checkpoint_contents, gguf_header, libraries
from t2i_cli.models.checkpoint_families import FAMILIES
from t2i_cli.models.checkpoint_file import CheckpointFile, read_checkpoint
from t2i_cli.models.checkpoint_task import check_text_to_image
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.safetensors_header import TensorHeader
from tests.fakes import checkpoint_files
from tests.fakes.checkpoint_files import write_gguf, write_header
from tests.fakes.checkpoint_layouts import LAYOUTS, flux_block, ldm_unet, prefixed


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_told_from_the_others(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    found = read_checkpoint(write_header(tmp_path / "x.safetensors", layout.shapes))
    assert (found.kind, found.family) == (layout.kind, layout.family)
    assert found.format == "safetensors"
    assert found.dtype == "float16"


def test_diffusers_takes_the_layouts_for_the_same() -> None:
    """The library that loads them agrees, where it has a name of its own for one."""
    import torch
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    for name, layout in LAYOUTS.items():
        if layout.diffusers:
            tensors = {
                key: torch.empty(shape, device="meta") for key, shape in layout.shapes.items()
            }
            assert infer_diffusers_model_type(tensors) == layout.diffusers, name


def test_one_block_of_flux_is_a_whole_transformer_of_diffusers() -> None:
    import torch
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import (
        convert_flux_transformer_checkpoint_to_diffusers as convert,
    )

    with torch.device("meta"), libraries.suppress_warnings():
        layout = {name: torch.empty(shape) for name, shape in flux_block().items()}
        model: LibraryObject = FluxTransformer2DModel(**_FLUX, guidance_embeds=True)
        converted = convert(layout)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in converted.items()} == expected


_FLUX = {"num_layers": 1, "num_single_layers": 1}
_XL = {
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
    "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
    "block_out_channels": (32, 64, 64),
}
_SD3 = {"num_layers": 1, "num_attention_heads": 24, "caption_projection_dim": 1536}
_NETWORKS: list[tuple[str, dict[str, Any], str | None]] = [
    ("UNet2DConditionModel", {"cross_attention_dim": 768}, "sd15"),
    ("UNet2DConditionModel", {"cross_attention_dim": 1024}, "sd2"),
    ("UNet2DConditionModel", {"cross_attention_dim": 768, "in_channels": 9}, "sd15-inpainting"),
    ("UNet2DConditionModel", _XL, "sdxl"),
    ("UNet2DConditionModel", _XL | {"in_channels": 9}, "sdxl-inpainting"),
    ("FluxTransformer2DModel", _FLUX, "flux-schnell"),
    ("FluxTransformer2DModel", _FLUX | {"guidance_embeds": True}, "flux-dev"),
    ("FluxTransformer2DModel", _FLUX | {"in_channels": 384}, "flux-fill"),
    ("Flux2Transformer2DModel", _FLUX, "flux2-dev"),
    ("Flux2Transformer2DModel", _FLUX | {"num_attention_heads": 24}, "flux2-klein"),
    ("ChromaTransformer2DModel", _FLUX, "chroma"),
    ("OvisImageTransformer2DModel", _FLUX, "ovis-image"),
    ("LongCatImageTransformer2DModel", _FLUX, "longcat-image"),
    ("HunyuanImageTransformer2DModel", _FLUX, "hunyuan-image"),
    ("HunyuanVideoTransformer3DModel", _FLUX | {"num_refiner_layers": 1}, "hunyuan-video"),
    ("QwenImageTransformer2DModel", {"num_layers": 1}, "qwen-image"),
    ("QwenImage21Transformer2DModel", {"num_layers": 1}, "qwen-image-2.1"),
    ("ZImageTransformer2DModel", {"n_layers": 1, "n_refiner_layers": 1}, "z-image"),
    ("Lumina2Transformer2DModel", {"num_layers": 1, "num_refiner_layers": 1}, "lumina2"),
    ("SD3Transformer2DModel", _SD3, "sd3"),
    ("SD3Transformer2DModel", _SD3 | {"dual_attention_layers": (0,)}, "sd35-medium"),
    (
        "SD3Transformer2DModel",
        {"num_layers": 1, "num_attention_heads": 38, "caption_projection_dim": 2432},
        "sd35-large",
    ),
    ("AuraFlowTransformer2DModel", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}, "auraflow"),
    ("SanaTransformer2DModel", {"num_layers": 1}, "sana"),
    ("PixArtTransformer2DModel", {"num_layers": 1}, "pixart-alpha"),
    (
        "PixArtTransformer2DModel",
        {"num_layers": 1, "use_additional_conditions": False},
        "pixart-sigma",
    ),
    ("Krea2Transformer2DModel", {"num_layers": 1}, "krea2"),
    ("ErnieImageTransformer2DModel", {"num_layers": 1}, "ernie-image"),
    ("CogView4Transformer2DModel", {"num_layers": 1}, "cogview4"),
    ("WanTransformer3DModel", {"num_layers": 1}, "wan"),
    ("LTXVideoTransformer3DModel", {"num_layers": 1}, "ltx-video"),
    ("LTX2VideoTransformer3DModel", {"num_layers": 1}, "ltx2"),
    ("CogVideoXTransformer3DModel", {"num_layers": 1}, "cogvideox"),
    ("MochiTransformer3DModel", {"num_layers": 1}, "mochi"),
    ("CosmosTransformer3DModel", {"num_layers": 1}, "cosmos"),
    ("UNetSpatioTemporalConditionModel", {"block_out_channels": (32,) * 4}, "svd"),
    ("UNetMotionModel", {"block_out_channels": (32,) * 4}, "animatediff"),
    ("StableAudioDiTModel", {"num_layers": 1}, "stable-audio"),
]


def _headers(name: str, config: dict[str, Any]) -> dict[str, TensorHeader]:
    """The tensors of a network of diffusers, which takes no memory."""
    import diffusers
    import torch

    with torch.device("meta"), libraries.suppress_warnings():
        state = getattr(diffusers, name)(**config).state_dict()
    return {name: TensorHeader(tuple(tensor.shape), "BF16") for name, tensor in state.items()}


def test_networks_as_diffusers_names_them_are_recognised() -> None:
    for name, config, family in _NETWORKS:
        found = checkpoint_contents.recognise_contents(_headers(name, config))
        kind = "unet" if name.startswith("UNet") else "transformer"
        assert (found.kind, found.family, found.parts) == (kind, family, (kind,)), name


def test_other_networks_of_diffusers_are_told_as_their_kind() -> None:
    kinds: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "vae": [
            ("AutoencoderKL", {"latent_channels": 16}),
            ("AutoencoderTiny", {}),
            ("AutoencoderKLWan", {}),
            ("AutoencoderKLQwenImage", {}),
            ("AutoencoderDC", {}),
            ("AutoencoderKLFlux2", {}),
        ],
        "controlnet": [
            ("ControlNetModel", {}),
            ("FluxControlNetModel", _FLUX),
            ("SD3ControlNetModel", {"num_layers": 1}),
        ],
        "t2i_adapter": [("T2IAdapter", {})],
        "motion_module": [("MotionAdapter", {})],
    }
    for kind, networks in kinds.items():
        for name, config in networks:
            found = checkpoint_contents.recognise_contents(_headers(name, config))
            assert found.kind == kind, name


@pytest.mark.full
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_tiny_checkpoints_are_what_diffusers_loads(tmp_path: Path, family: str) -> None:
    import diffusers
    import torch

    pipe = {"sd15": checkpoint_files.tiny_sd15, "sdxl": checkpoint_files.tiny_sdxl}[family]()
    file = checkpoint_files.save_ldm_checkpoint(pipe, tmp_path / "x.safetensors", "float32")
    assert read_checkpoint(file).family == family
    pipe.save_pretrained(tmp_path / "configs")
    loaded = getattr(diffusers, type(pipe).__name__).from_single_file(
        str(file), config=str(tmp_path / "configs"), local_files_only=True
    )
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            theirs = getattr(loaded, name).state_dict()
            assert all(torch.equal(each, theirs[key]) for key, each in part.state_dict().items())


def test_parts_dtypes_and_size_are_told(tmp_path: Path) -> None:
    layout = LAYOUTS["sd3"].shapes
    file = write_header(
        tmp_path / "x.safetensors",
        layout,
        "F8_E4M3",
        dtypes=dict.fromkeys([name for name in layout if name.startswith("text_enc")], "BF16"),
        metadata={"modelspec.title": "x"},
    )
    found = read_checkpoint(file)
    parts = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")
    assert found.parts == parts
    assert list(found.dtypes) == ["bfloat16", "float8_e4m3fn"]
    assert found.dtype == "float8_e4m3fn"
    assert found.bytes == file.stat().st_size
    assert found.metadata == {"modelspec.title": "x"}


@pytest.mark.parametrize(
    ("more", "how"),
    [
        ({"double_blocks.0.img_mlp.0.scale_weight": ()}, "scaled"),
        ({"scaled_fp8": (2,)}, "scaled"),
        ({"img_in.weight.quant_state.bitsandbytes__nf4": (90,)}, "bitsandbytes 4-bit"),
        ({"single_blocks.0.qkv_proj.qweight": (8, 8)}, "nunchaku"),
        ({}, None),
    ],
)
def test_quantisation_is_told(
    tmp_path: Path, more: dict[str, tuple[int, ...]], how: str | None
) -> None:
    file = write_header(tmp_path / "x.safetensors", flux_block() | more, "F8_E4M3")
    assert read_checkpoint(file).quantization == how


def test_gguf_is_read_with_its_own_shapes(tmp_path: Path) -> None:
    words = [f"word {number}" for number in range(100)]
    file = write_gguf(tmp_path / "x.gguf", flux_block(), {"tokenizer.ggml.tokens": words, "n": 7})
    found = read_checkpoint(file)
    assert (found.format, found.kind, found.family) == ("gguf", "transformer", "flux-dev")
    assert found.tensors["txt_in.weight"] == TensorHeader((3072, 4096), "Q8_0")
    assert found.dtype == "Q8_0"
    assert found.quantization == "gguf"
    assert found.metadata == {"general.architecture": "flux", "n": "7"}
    check_text_to_image(found)


def _sparse(tmp_path: Path, name: str, suffix: str = ".safetensors") -> CheckpointFile:
    return read_checkpoint(write_header(tmp_path / f"x{suffix}", LAYOUTS[name].shapes))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sd15 inpainting", "an inpainting model, which fills a part of a given image"),
        ("sdxl refiner", "a refiner, which improves given images"),
        ("x4 upscaler", "an upscaler, which enlarges given images"),
        ("pix2pix", "which changes given images"),
        ("flux depth", "which changes given images"),
        ("wan", "is Wan, which makes videos"),
        ("stable audio", "which makes sound"),
        ("controlnet", "is a ControlNet, which steers a model by a given image"),
        ("vae", "is a VAE, one part of a model"),
        ("t5-xxl", "is a text encoder, one part of a model"),
        ("embedding sdxl", r"a textual inversion, a word for prompts \(for Stable Diffusion XL\)"),
        ("upscaler", "is an upscaler, which enlarges given images"),
        ("pixart sigma", "diffusers reads no single files of this family"),
        ("language of another kind", "holds 1 tensors, and no model that t2i knows"),
    ],
)
def test_what_makes_no_image_from_text_is_told_as_what_it_is(
    tmp_path: Path, name: str, told: str
) -> None:
    with pytest.raises(ModelError, match=told) as caught:
        check_text_to_image(_sparse(tmp_path, name))
    assert caught.value.hint


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl", "sd3", "flux dev", "z-image", "krea2"])
def test_what_makes_images_from_text_is_let_through(tmp_path: Path, name: str) -> None:
    check_text_to_image(_sparse(tmp_path, name))


def test_unknown_family_needs_a_base(tmp_path: Path) -> None:
    file = read_checkpoint(
        write_header(tmp_path / "x.safetensors", prefixed({"down_blocks.0.x.weight": (3, 4)}))
    )
    with pytest.raises(ModelError, match="UNet of no family") as caught:
        check_text_to_image(file)
    assert "--base" in str(caught.value.hint)
    check_text_to_image(file, with_base=True)


def test_smaller_relative_of_sdxl_is_not_taken_for_it(tmp_path: Path) -> None:
    shapes = prefixed(ldm_unet(4, 2048, 2816))
    shallow = {name.replace("blocks.9.", "blocks.3."): shape for name, shape in shapes.items()}
    assert read_checkpoint(write_header(tmp_path / "x.safetensors", shallow)).family is None


@pytest.mark.parametrize(
    ("file_name", "told"),
    [
        ("model-00001-of-00003.safetensors", "is one of 3 files that are a model together"),
        ("model.bin", "is a safetensors file under another name"),
    ],
)
def test_shards_and_misleading_names_are_told(tmp_path: Path, file_name: str, told: str) -> None:
    file = read_checkpoint(write_header(tmp_path / file_name, flux_block()))
    with pytest.raises(ModelError, match=told):
        check_text_to_image(file)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + b"\0" * 26 + b"archive/data.pkl", "is a pickle file under another name"),
        (b"\x80\x02}q\x00.", "is a pickle file under another name"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "is no model: it is a web page"),
        (b'{"error": "no"}', "a server's error message"),
        (b"\x1f\x8b\x08" + b"\0" * 20, "a gzip archive"),
        (b"junk" * 9, "is no file of weights, or damaged"),
        (b"\xff" * 600, "is no file of weights, or damaged"),
        (b"GGUF", "GGUF file .* is truncated or damaged"),
        (b"GGUF" + b"\x01\0\0\0" + b"\0" * 16, "GGUF file of version 1"),
        ((16).to_bytes(8, "little") + b'{"__metadata__":', "is damaged"),
    ],
)
def test_what_is_no_file_of_weights_is_told_in_a_sentence(
    tmp_path: Path, content: bytes, told: str
) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=told):
        read_checkpoint(file)


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        read_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="it is a folder"):
        read_checkpoint(tmp_path)


def _valid_files() -> dict[str, bytes]:
    head = checkpoint_files.gguf_header({"txt_in.weight": (2, 32), "txt_in.bias": (2,)}, {"n": 3})
    return {
        "safetensors": b"\x50\0\0\0\0\0\0\0"
        + b'{"a.lora_down.weight":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}'.ljust(80)
        + bytes(12),
        "gguf": head + bytes(104),
    }


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_truncated_anywhere_is_one_sentence(tmp_path: Path, form: str) -> None:
    data, file = _valid_files()[form], tmp_path / "x.safetensors"
    file.write_bytes(data)
    read_checkpoint(file)
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(ModelError) as caught:
            read_checkpoint(file)
        assert "\n" not in caught.value.message


@given(seed=st.integers(0, 2**32), form=st.sampled_from(["safetensors", "gguf"]))
def test_garbage_in_headers_is_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, seed: int, form: str
) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    data = bytearray(_valid_files()[form])
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(data))
        span = chance.choice((1, 1, 4, 8))
        data[place : place + span] = chance.choice(
            (chance.randbytes(span), b"\xff" * span, b"\0" * span, b"", b"[" * span)
        )
    file = tmp_path_factory.mktemp("garbage") / "x.safetensors"
    file.write_bytes(data)
    try:
        check_text_to_image(read_checkpoint(file), with_base=True)
    except T2IError as error:
        assert error.message.count("\n") == 0


def _gguf(counts: tuple[int, int], rest: bytes) -> bytes:
    return b"GGUF\x03\0\0\0" + b"".join(n.to_bytes(8, "little") for n in counts) + rest


@pytest.mark.parametrize(
    "data",
    [
        _gguf((2**62, 0), b""),
        _gguf((0, 2**62), b""),
        # A list of 2**60 lists, a text of 2**60 bytes, a tensor of 2**31 dimensions.
        _gguf((0, 1), b"\x01" + bytes(7) + b"a" + b"\x09\0\0\0" * 2 + b"\0" * 7 + b"\x10"),
        _gguf((0, 1), bytes(7) + b"\x10"),
        _gguf((1, 0), b"\x01" + bytes(7) + b"a" + b"\xff" * 4),
        (2**63).to_bytes(8, "little") + b"{}",
    ],
)
def test_counts_that_lie_take_no_memory(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(data + bytes(4096))
    tracemalloc.start()
    try:
        with pytest.raises(ModelError):
            read_checkpoint(file)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_header_of_very_many_items_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    header = b'{"a":[' + b"[]," * 3_000_000 + b"[]]}"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="is damaged"):
            read_checkpoint(file)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(header)
    finally:
        tracemalloc.stop()


def test_every_family_has_a_signature_and_encodings_are_the_packages() -> None:
    families = {layout.family for layout in LAYOUTS.values()}
    assert {"sd15", "sdxl", "sd3", "flux-dev", "z-image", "qwen-image"} <= families & set(FAMILIES)
    gguf = pytest.importorskip("gguf")
    sizes = {
        int(kind): (kind.name, elements, size)
        for kind, (elements, size) in gguf.GGML_QUANT_SIZES.items()
    }
    ours = {number: tuple(encoding) for number, encoding in gguf_header.TENSOR_ENCODINGS.items()}
    assert ours == {number: sizes[number] for number in ours}
