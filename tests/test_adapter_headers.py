"""LoRA files are told from their headers: format, algorithm, rank, modules, family."""

from pathlib import Path

import pytest

from t2i_cli.errors import ModelError
from t2i_cli.models.adapter_header import AdapterHeader, read_adapter
from t2i_cli.models.checkpoint_file import read_checkpoint
from t2i_cli.models.checkpoint_metadata import read_maker_words
from t2i_cli.models.checkpoint_task import check_text_to_image
from t2i_cli.models.safetensors_header import TensorHeader
from tests.fakes.checkpoint_files import write_header
from tests.fakes.checkpoint_layouts import LAYOUTS

_UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_"
_ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
_LDM = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
_DOUBLE = "double_blocks.0.img_attn.qkv"
_SINGLE = "single_blocks.0.linear1"


def _kohya(module: str, taken: int, given: int, rank: int = 8) -> dict[str, tuple[int, ...]]:
    return {
        f"{module}.lora_down.weight": (rank, taken),
        f"{module}.lora_up.weight": (given, rank),
        f"{module}.alpha": (),
    }


def _peft(module: str, taken: int, given: int, rank: int = 8) -> dict[str, tuple[int, ...]]:
    return {
        f"{module}.lora_A.weight": (rank, taken),
        f"{module}.lora_B.weight": (given, rank),
    }


def _read(shapes: dict[str, tuple[int, ...]]) -> AdapterHeader | None:
    return read_adapter({name: TensorHeader(shape, "F16") for name, shape in shapes.items()})


@pytest.mark.parametrize(
    ("shapes", "form", "family"),
    [
        (_kohya(f"{_UNET}attn2_to_k", 768, 640), "kohya", "sd15"),
        (_kohya(f"{_UNET}attn2_to_k", 1024, 640), "kohya", "sd2"),
        (_kohya(f"{_UNET}attn2_to_k", 2048, 640), "kohya", "sdxl"),
        (_kohya(_LDM, 2048, 640), "kohya", "sdxl"),
        (_kohya(f"{_UNET[:-2]}1_attn1_to_q", 640, 640), "kohya", "sdxl"),
        (_kohya("lora_te2_text_model_encoder_layers_0_mlp_fc1", 1280, 5120), "kohya", "sdxl"),
        (_kohya(f"{_UNET}attn1_to_q", 320, 320), "kohya", None),
        (_peft(f"unet.{_ATTENTION}", 768, 320), "peft", "sd15"),
        (_peft(f"base_model.model.{_ATTENTION}", 2048, 640), "peft", "sdxl"),
        (
            {
                f"unet.{_ATTENTION}.lora.down.weight": (4, 768),
                f"unet.{_ATTENTION}.lora.up.weight": (320, 4),
            },
            "diffusers",
            "sd15",
        ),
        (
            {
                f"unet.{_ATTENTION[:-4]}processor.to_k_lora.down.weight": (4, 768),
                f"unet.{_ATTENTION[:-4]}processor.to_k_lora.up.weight": (320, 4),
            },
            "diffusers",
            "sd15",
        ),
        (_kohya("lora_unet_double_blocks_0_img_attn_qkv", 3072, 9216), "kohya", "flux"),
        (_kohya("lora_unet_double_blocks_19_img_attn_qkv", 3072, 9216), "kohya", "hunyuan-video"),
        (_peft(f"diffusion_model.{_DOUBLE}", 6144, 18432), "peft", "flux2-dev"),
        (_peft(f"diffusion_model.{_SINGLE}", 3072, 27648), "peft", "flux2-klein"),
        (_peft(f"diffusion_model.{_SINGLE}", 3072, 21504), "peft", "flux"),
        (_peft("transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072), "peft", "flux"),
        (
            {
                "double_blocks.0.processor.qkv_lora1.down.weight": (16, 3072),
                "double_blocks.0.processor.qkv_lora1.up.weight": (9216, 16),
            },
            "xlabs",
            "flux",
        ),
        (_peft("transformer.transformer_blocks.0.attn.add_k_proj", 1536, 1536), "peft", "sd3"),
        (_peft("transformer_blocks.0.img_mlp.net.2", 12288, 3072), "peft", "qwen-image"),
        (_peft("transformer.transformer_blocks.0.ff_context.net.2", 12288, 3072), "peft", "flux"),
        (_peft("diffusion_model.layers.0.attention.to_q", 3840, 3840), "peft", "z-image"),
        (_peft("layers.0.attention.qkv", 2304, 4608), "peft", "lumina2"),
        (_peft("diffusion_model.blocks.0.self_attn.q", 5120, 5120), "peft", "wan"),
        (_peft("transformer.transformer_blocks.0.attn1.to_q", 2048, 2048), "peft", "ltx-video"),
    ],
)
def test_format_and_family_are_told(
    shapes: dict[str, tuple[int, ...]], form: str, family: str | None
) -> None:
    found = _read(shapes)
    assert found is not None
    assert (found.format, found.family, found.modules) == (form, family, 1)


@pytest.mark.parametrize(
    ("suffixes", "algorithms"),
    [
        (
            {"hada_w1_a": (4, 8), "hada_w1_b": (8, 768), "hada_w2_a": (4, 8), "alpha": ()},
            ("LoHa",),
        ),
        ({"lokr_w1": (4, 4), "lokr_w2_a": (80, 8), "lokr_w2_b": (8, 192)}, ("LoKr",)),
        ({"oft_blocks": (4, 80, 80), "alpha": ()}, ("OFT",)),
        ({"diff": (320, 768), "diff_b": (320,)}, ("full difference",)),
        (
            {"lora_down.weight": (8, 768), "lora_up.weight": (320, 8), "dora_scale": (1, 768)},
            ("DoRA", "LoRA"),
        ),
    ],
)
def test_algorithms_are_told(
    suffixes: dict[str, tuple[int, ...]], algorithms: tuple[str, ...]
) -> None:
    found = _read({f"{_UNET}attn2_to_k.{suffix}": shape for suffix, shape in suffixes.items()})
    assert found is not None
    assert found.algorithms == algorithms
    assert found.parts == ("unet",)


def test_parts_and_ranks_are_told() -> None:
    found = _read(
        _kohya(f"{_UNET}attn2_to_k", 2048, 640, rank=4)
        | _kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1", 768, 3072, rank=16)
        | _kohya("lora_te2_text_model_encoder_layers_0_mlp_fc1", 1280, 5120)
    )
    assert found is not None
    assert found.parts == ("text_encoder", "text_encoder_2", "unet")
    assert (found.ranks, found.modules, found.family) == ((4, 16), 3, "sdxl")


def test_nothing_else_is_taken_for_a_lora() -> None:
    for name, layout in LAYOUTS.items():
        assert _read(dict(layout.shapes)) is None, name


def test_lora_as_a_model_is_told_with_what_to_do(tmp_path: Path) -> None:
    file = read_checkpoint(
        write_header(tmp_path / "x.safetensors", _kohya(f"{_UNET}attn2_to_k", 2048, 640))
    )
    assert (file.kind, file.family, file.parts) == ("lora", "sdxl", ("unet",))
    with pytest.raises(ModelError, match=r"is a LoRA, .* \(for Stable Diffusion XL\)") as caught:
        check_text_to_image(file)
    assert "--lora" in str(caught.value.hint)


def test_makers_words_are_read_and_bounded() -> None:
    words = read_maker_words(
        {
            "modelspec.title": "Fast\x1b[31m  Lightning\nthing",
            "modelspec.trigger_phrase": "t" * 9000,
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_tag_frequency": '{"a": {"cat ": 3, "dog": 1, "odd": -1}, "b": {"dog": 9}, "c": 1}',
        }
    )
    assert words.title == "Fast\x1b[31m Lightning thing"
    assert words.base_model == "sdxl_base_v1-0"
    assert words.few_steps == "lightning"
    assert words.frequent_tags == {"dog": 10, "cat": 3}
    assert words.trigger_phrase is not None
    assert len(words.trigger_phrase) == 300


@pytest.mark.parametrize("tags", ["", "[", "[]", '{"a": 1}', "[" * 5000, '{"a": {"b": 1e999}}'])
def test_damaged_tags_count_as_none(tags: str) -> None:
    words = read_maker_words({"ss_tag_frequency": tags, "ss_output_name": "None"})
    assert words.frequent_tags == {}
    assert words.title is None
