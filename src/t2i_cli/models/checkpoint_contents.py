"""What a weights file holds, by the names and shapes of its tensors: its kind, family and parts."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from t2i_cli.models import adapter_header
from t2i_cli.models.adapter_header import AdapterHeader
from t2i_cli.models.checkpoint_families import FAMILIES, family_of_denoiser
from t2i_cli.models.safetensors_header import TensorHeader

CheckpointKind = Literal[
    "checkpoint",
    "transformer",
    "unet",
    "vae",
    "text_encoder",
    "lora",
    "embedding",
    "controlnet",
    "ip_adapter",
    "t2i_adapter",
    "motion_module",
    "image_encoder",
    "upscaler",
    "unknown",
]
"""A checkpoint is a denoiser with other parts of its pipeline; the denoiser alone is named."""

Tensors = Mapping[str, TensorHeader]


class CheckpointContents(NamedTuple):
    """A file's kind, the family if it tells one, and the parts of a pipeline that it holds."""

    kind: CheckpointKind
    family: str | None = None
    parts: tuple[str, ...] = ()
    adapter: AdapterHeader | None = None


_DENOISER = "denoiser"
_T5 = "t5"
_PART_PREFIXES = (
    ("model.diffusion_model.", _DENOISER),
    ("diffusion_model.", _DENOISER),
    ("model.model.", _DENOISER),
    ("net.", _DENOISER),
    ("first_stage_model.", "vae"),
    ("vae.", "vae"),
    ("cond_stage_model.", "text_encoder"),
    ("conditioner.embedders.0.", "text_encoder"),
    ("conditioner.embedders.1.", "text_encoder_2"),
    ("text_encoders.clip_l.", "text_encoder"),
    ("text_encoders.clip_g.", "text_encoder_2"),
    ("text_encoders.t5xxl.", _T5),
    ("text_encoders.", "text_encoder"),
    ("control_model.", "controlnet"),
)
"""By the prefixes of ldm's and ComfyUI's files; a T5 is the first, second or third encoder."""
_T5_PLACES = {"flux-dev": 2, "flux-schnell": 2, "sd3": 3, "sd35-medium": 3, "sd35-large": 3}
"""Which encoder of a family's is its T5; of others it comes after those that a file has."""
_AURA_FLOW = re.compile(
    r"model\.(?=(double_layers|single_layers|register_tokens|positional_encoding|init_x_linear"
    r"|t_embedder|cond_seq_linear|modF|final_linear)\b)"
)
"""The prefix of AuraFlow's denoiser, which the names of language models have, too."""

_MARKS: tuple[tuple[re.Pattern[str], CheckpointKind], ...] = (
    (
        re.compile(
            r"(controlnet_(cond_embedding|x_embedder|blocks|down_blocks|mode_embedder)\.|control_model\."
            r"|control_all_x_embedder\.|control_layers\.|input_hint_block\.|lllite_|pos_embed_input\."
            r"|cldm\.|task_embedding$)"
        ),
        "controlnet",
    ),
    (re.compile(r"(ip_adapter\.|image_proj\.|image_proj_model\.|redux_up\.)"), "ip_adapter"),
    (
        re.compile(r"(adapter\.)?body\.\d+\.(in_conv|resnets|block1)|adapter\.conv_in"),
        "t2i_adapter",
    ),
    (re.compile(r"(conv_first\.|body\.0\.rdb1\.|model\.1\.sub\.0\.)"), "upscaler"),
)  # fmt: skip
"""Beginnings of tensor names that only files of a kind have."""

_DENOISER_NAME = re.compile(
    r"(input_blocks|down_blocks|(single_|joint_)?transformer_blocks|(double|single|joint)_blocks)\.\d"
)

_VAE = (
    "decoder.conv_in.weight",
    "decoder.conv_in.conv.weight",
    "encoder.conv_in.weight",
    "decoder.middle.0.residual.0.gamma",
    "decoder.stages.1.op_list.0.main.conv.conv.bias",
    "decoder.project_in.main.conv.weight",
    "decoder.layers.0.weight",
    "taesd_decoder.1.weight",
)
_VIDEO_VAES = (
    ("decoder.middle.0.residual.0.gamma", "wan"),
    ("decoder.last_scale_shift_table", "ltx-video"),
    ("per_channel_statistics.mean-of-means", "ltx-video"),
)
"""Qwen-Image's VAE has the layout of Wan's."""
_LATENT_INPUTS = ("decoder.conv_in.weight", "decoder.conv_in.conv.weight", "decoder.conv1.weight")

_QUANTIZATION = (
    (re.compile(r"\.qweight$"), "nunchaku"),
    (re.compile(r"\.quant_state\.bitsandbytes__(nf4|fp4)$"), "bitsandbytes 4-bit"),
    (re.compile(r"\.(SCB|weight_format)$"), "bitsandbytes 8-bit"),
    (re.compile(r"(^|\.)scaled_fp8$|\.(scale_weight|weight_scale|weight_scale_2)$"), "scaled"),
    (re.compile(r"\.(comfy_quant|_quantization_metadata)$"), "scaled"),
    (re.compile(r"\.(_data|_scale)$"), "quanto"),
)
"""Tensors that belong to a quantised weight, by how it is; `scaled` has a factor beside each."""

_EMBEDDED_WORDS = re.compile(
    r"(^|\.)(shared|token_embedding|embed_tokens|token_embd|word_embeddings)\.weight$"
)
_ENCODERS = {
    (49408, 768): "clip-l",
    (49408, 1280): "clip-g",
    (49408, 1024): "clip-h",
    (32128, 4096): "t5-xxl",
    (32128, 2048): "t5-xl",
    (32128, 1024): "t5-large",
    (32128, 768): "t5-base",
    (256384, 4096): "umt5-xxl",
    (152064, 3584): "qwen2.5-vl-7b",
    (151936, 2560): "qwen3-4b",
    (151936, 4096): "qwen3-8b",
    (256000, 2304): "gemma2-2b",
    (128256, 4096): "llama3.1-8b",
    (131072, 5120): "mistral-small-24b",
}
"""Encoders of texts by their words and width, as the configs of the families' models have them."""
_ENCODER_MARKS = (
    ("encoder.block.0.layer.0.SelfAttention.q.weight", {4096: "t5-xxl"}),
    ("text_model.encoder.layers.0.self_attn.q_proj.weight", {768: "clip-l", 1280: "clip-g"}),
)
_EMBEDDING_NAMES = {"emb_params", "clip_l", "clip_g", "t5xxl", "t5", "clip_h"}
_EMBEDDING_WIDTHS = {768: "sd15", 1024: "sd2"}


def recognise_contents(tensors: Tensors) -> CheckpointContents:
    """What the tensors are."""
    if not any(name.endswith(".qweight") for name in tensors) and (
        adapter := adapter_header.read_adapter(tensors)
    ):
        return CheckpointContents("lora", adapter.family, adapter.parts, adapter)
    if embedding := _embedding(tensors):
        return embedding
    groups = _grouped(tensors)
    others = groups.pop("", {})
    if not groups.get(_DENOISER):
        for mark, kind in _MARKS:
            if any(mark.match(name) for name in others) or kind in groups:
                return CheckpointContents(kind, parts=(kind,))
        if any("motion_modules" in name for name in others) and "conv_in.weight" not in others:
            return CheckpointContents("motion_module", parts=("motion_adapter",))
    denoiser = groups.pop(_DENOISER, None)
    if denoiser is None and (family := family_of_denoiser(others)):
        return CheckpointContents(FAMILIES[family].denoiser, family, (FAMILIES[family].denoiser,))
    if denoiser is not None:
        return _with_denoiser(tensors, denoiser, groups)
    if set(groups) == {"vae"} or (not groups and any(name in others for name in _VAE)):
        return CheckpointContents("vae", _vae_family(groups.get("vae", others)), ("vae",))
    return _text_encoder(tensors, groups, others)


def latent_channels(tensors: Tensors) -> int | None:
    """The channels of a VAE's latents, `None` if its decoder has another layout."""
    for name, (shape, _) in tensors.items():
        if name.endswith(_LATENT_INPUTS) and len(shape) > 1:
            return shape[1]
    return None


@lru_cache(maxsize=16_384)
def split_prefix(name: str) -> tuple[str, str]:
    """The prefix by which a tensor is a part's, and that part: `denoiser`, `t5`, or its own name.

    Both are empty for a tensor without one.
    """
    if _AURA_FLOW.match(name):
        return "model.", _DENOISER
    return next((one for one in _PART_PREFIXES if name.startswith(one[0])), ("", ""))


def denoiser_tensors(tensors: Tensors) -> Tensors:
    """The tensors of a checkpoint's denoiser, without their prefix; all if none has one."""
    return _grouped(tensors).get(_DENOISER) or tensors


def quantization_of(tensors: Tensors) -> str | None:
    """How a file's weights are quantised, by the tensors beside them; `None` if they are not."""
    return next(
        (how for mark, how in _QUANTIZATION if any(mark.search(name) for name in tensors)), None
    )


def _grouped(tensors: Tensors) -> dict[str, dict[str, TensorHeader]]:
    """The tensors by part, without its prefix; under "" those without any."""
    groups: dict[str, dict[str, TensorHeader]] = {}
    for name, header in tensors.items():
        prefix, part = split_prefix(name)
        groups.setdefault(part, {})[name[len(prefix) :]] = header
    return groups


def _with_denoiser(
    tensors: Tensors, denoiser: Tensors, groups: Mapping[str, Tensors]
) -> CheckpointContents:
    """A denoiser with a prefix, and the pipeline's other parts beside it."""
    family = family_of_denoiser(denoiser)
    if family == "sdxl" and "edm_mean" in tensors:
        family = "playground-v2.5"
    kind = FAMILIES[family].denoiser if family else _denoiser_kind(denoiser)
    parts = [kind, *(part for part in groups if part and part != _T5)]
    if _T5 in groups:
        place = _T5_PLACES.get(family or "", 1 + sum(part.startswith("text") for part in groups))
        parts.append("text_encoder" if place == 1 else f"text_encoder_{place}")
    if len(parts) == 1:
        return CheckpointContents(kind, family, (kind,))
    return CheckpointContents("checkpoint", family, tuple(sorted(set(parts))))


def _denoiser_kind(denoiser: Tensors) -> Literal["unet", "transformer"]:
    """Whether a denoiser of no known family is a UNet, by its names."""
    unet = any(name.startswith(("input_blocks.", "down_blocks.")) for name in denoiser)
    return "unet" if unet else "transformer"


def _vae_family(vae: Tensors) -> str | None:
    """The family of a VAE for videos; those for images differ in their channels only."""
    return next((family for mark, family in _VIDEO_VAES if mark in vae), None)


def _text_encoder(
    tensors: Tensors, groups: Mapping[str, Tensors], others: Tensors
) -> CheckpointContents:
    """A text encoder alone, or an image encoder, or what is not known."""
    families = {
        _ENCODERS.get((header.shape[0], header.shape[1]))
        for name, header in tensors.items()
        if _EMBEDDED_WORDS.search(name) and len(header.shape) == 2
    }
    for mark, widths in _ENCODER_MARKS:
        if not families and (header := others.get(mark)) is not None:
            families = {widths.get(header.shape[-1])}
    if families and (not groups or all(part.startswith(("text", "t5")) for part in groups)):
        family = families.pop() if len(families) == 1 else None
        return CheckpointContents("text_encoder", family, ("text_encoder",))
    if any(re.match(r"(vision_model|visual)\.", name) for name in others):
        return CheckpointContents("image_encoder", parts=("image_encoder",))
    if any(_DENOISER_NAME.match(name) for name in others):
        kind = _denoiser_kind(others)
        return CheckpointContents(kind, parts=(kind,))
    return CheckpointContents("unknown")


def _embedding(tensors: Tensors) -> CheckpointContents | None:
    """A textual inversion: a few vectors, as wide as the words of the family's text encoder."""
    named = _EMBEDDING_NAMES & set(tensors)
    vectors = [shape for shape, _ in tensors.values() if 1 <= len(shape) <= 2]
    if len(vectors) != len(tensors) or not tensors or max(shape[0] for shape in vectors) > 20_000:
        return None
    if not named and (len(tensors) != 1 or "." in next(iter(tensors))):
        return None
    widths = {shape[-1] for shape in vectors}
    if widths == {768, 1280}:
        family: str | None = "sdxl"
    elif 4096 in widths:
        family = "flux"
    else:
        family = _EMBEDDING_WIDTHS.get(widths.pop()) if len(widths) == 1 else None
    return CheckpointContents("embedding", family, ("text_encoder",))
