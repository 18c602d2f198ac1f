"""Memory that a model's networks work with, from their configs; `None` where these do not say."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from t2i_cli.files.state_files import is_count
from t2i_cli.models import diffusers_folder
from t2i_cli.models.diffusers_folder import JsonConfig
from t2i_cli.models.sources import Part

DECODERS = ("vae", "movq", "vqvae", "vqgan")
"""The names of the component that decodes latents to images."""
_MAX_SIZE = 2**20
_TEXT_TOKENS = 512
_INSTRUCTED_TOKENS = 1152
"""Tokens of a prompt with Sana's instruction how to write it anew; one a letter in small models."""
_PIXEL_BYTES = 3 * 4
"""A pixel of the decoded image, in float32."""


class _Denoiser(NamedTuple):
    """Peak bytes as a multiple of one activation (tokens x width x element), and forward passes.

    `passes` is how many images share a forward pass where guidance is on: 2 where the pipeline puts
    the image with and without the prompt into one batch, 1 where it makes two passes of them.
    """

    factor: float
    passes: int = 2


_TRANSFORMERS = {
    "ChromaTransformer2DModel": _Denoiser(20, 1),
    "Flux2Transformer2DModel": _Denoiser(24, 1),
    "FluxTransformer2DModel": _Denoiser(19, 1),
    "LongCatImageTransformer2DModel": _Denoiser(19),
    "QwenImageTransformer2DModel": _Denoiser(16, 1),
    "SD3Transformer2DModel": _Denoiser(15),
    "ZImageTransformer2DModel": _Denoiser(18),
}
"""Counted by benchmarks/memory.py on the real configurations, rounded up for workspaces."""
_OTHER_TRANSFORMER = _Denoiser(24)
_UNET_WITH_ATTENTION = 28
_UNET_WITHOUT_ATTENTION = 18
_OTHER_UNET = 32
"""The same for UNets, in latent pixels x first channels, by what their first stage is."""
_DECODER_FACTORS = {
    "AutoencoderDC": 7.2,
    "AutoencoderKLHunyuanImage": 2.0,
    "AutoencoderKLHunyuanVideo": 6.4,
    "AutoencoderTiny": 3.4,
}
_DECODER = 3.55
_SPATIAL_NORM_DECODER = 5.5
_VIDEO_DECODER = 22.2
_SMALL_VIDEO_DECODER, _SMALL_PIXELS = 43, 384**2
"""The same for decoders, in pixels x channels of their last large stage. Small images and tiles
took more of such a VAE on a CPU: up to 256 px measured, no longer at 512; the limit is assumed.
Measured on an H200 for AutoencoderKL and the video VAE; the others are counted."""
_CONTIGUOUS_DECODER = 1.37
"""How many times as much a GPU takes for it where convolutions are not stored channels-last: cuDNN
turns them around in a workspace. Measured on an H200."""
_ENCODERS = {"clip": (1, 36), "t5": (0, 10), "umt5": (0, 10)}
_LANGUAGE_MODEL = (1, 52)
"""The same for text encoders, in tokens x width: the outputs kept per layer, and the rest."""
_SCORES_TOKENS = re.compile("ForCausalLM|ForConditionalGeneration")
"""Classes that compute a score of every word of the vocabulary for each token."""


def is_text_encoder(name: str) -> bool:
    """Whether a component of that name encodes prompts, and is idle for all steps."""
    return name.startswith("text_encoder")


def is_decoder(name: str) -> bool:
    """Whether a component of that name decodes latents to images."""
    return name in DECODERS


def config_size(config: Mapping[str, object], *keys: str) -> int | None:
    """The first of these sizes in a config, the largest of a list; `None` without a sound one."""
    for key in keys:
        value = config.get(key)
        sizes = value if isinstance(value, list) else [value]
        if sizes and all(is_count(size, _MAX_SIZE) and size for size in sizes):
            return int(max(sizes))
    return None


def denoiser_bytes(folder: Path, latent: int, element: int, *, guided: bool) -> int | None:
    """Peak bytes of a step for one image of `latent` latent pixels, without the weights."""
    name, config = diffusers_folder.denoiser_config(folder)
    if name == "transformer":
        cls = str(config.get("_class_name"))
        kind = _TRANSFORMERS.get(cls, _OTHER_TRANSFORMER)
        width, tokens = _transformer_width(config), _image_tokens(folder, config, latent)
        if width is None or tokens is None:
            return None
        size = kind.factor * (tokens + _TEXT_TOKENS) * width
        return int(size * element) * (kind.passes if guided else 1)
    channels = config.get("block_out_channels")
    first = channels[0] if isinstance(channels, list) else channels
    if not is_count(first, _MAX_SIZE) or not first:
        return None
    factor = _OTHER_UNET
    if name == "unet":
        stages = config.get("down_block_types")
        attends = not isinstance(stages, list) or not stages or "Attn" in str(stages[0])
        factor = _UNET_WITH_ATTENTION if attends else _UNET_WITHOUT_ATTENTION
    return factor * latent * first * element * (2 if guided else 1)


def attention_bytes(folder: Path, latent: int, element: int, *, guided: bool) -> int:
    """The largest attention matrix of a UNet, which only a fused kernel does not store."""
    name, _ = diffusers_folder.denoiser_config(folder)
    return 0 if name == "transformer" else 8 * latent**2 * element * (2 if guided else 1)


def decoder_bytes(folder: Path, pixels: int, element: int) -> int | None:
    """Peak bytes of decoding `pixels` pixels, without the weights; 0 for a pipeline on pixels."""
    config = decoder_config(folder)
    if not config:
        return 0
    width = _decoder_width(config)
    if width is None:
        return None
    if _video_base(config):
        small = _SMALL_VIDEO_DECODER * min(pixels, _SMALL_PIXELS) / _VIDEO_DECODER
        pixels = max(pixels, int(small))
    return int(width * pixels * element)


def contiguous_factor(folder: Path) -> float:
    """How many times as much a GPU takes for decoding where weights are not stored channels-last.

    Those of video VAEs never are.
    """
    return 1.0 if _video_base(decoder_config(folder)) else _CONTIGUOUS_DECODER


def output_bytes(pixels: int) -> int:
    """Bytes of a decoded image in float32."""
    return _PIXEL_BYTES * pixels


def decoder_config(folder: Path) -> JsonConfig:
    """The config of the network that decodes latents; empty for a pipeline on pixels."""
    configs = (diffusers_folder.component_config(folder, name) for name in DECODERS)
    return next((config for config in configs if config), {})


def encoder_bytes(folder: Path, encoders: Iterable[Part], element: int) -> int | None:
    """Peak bytes of encoding one text by the largest of these encoders, without the weights."""
    found = [
        _encoder_bytes(
            diffusers_folder.component_config(folder, encoder.name), encoder.cls, element
        )
        for encoder in encoders
    ]
    return None if None in found else max((size for size in found if size), default=0)


def _encoder_bytes(config: JsonConfig, cls: str, element: int) -> int | None:
    """Bytes held at most while one text is encoded."""
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config
    width = config_size(config, "hidden_size", "d_model", "n_embd")
    layers = config_size(config, "num_hidden_layers", "num_layers")
    if width is None or layers is None:
        return None
    kind = str(config.get("model_type")).removesuffix("_text_model").removesuffix("_encoder")
    kept, rest = _ENCODERS.get(kind, _LANGUAGE_MODEL)
    tokens = 77 if kind == "clip" else _TEXT_TOKENS + 64
    if kind == "gemma2":
        tokens = _INSTRUCTED_TOKENS
    attention = 0
    # What they add to attention, or cap of it, keeps it from the fused kernels, and in float32.
    if kind in {"t5", "umt5", "gemma2"}:
        heads = config_size(config, "num_heads", "num_attention_heads") or 0
        attention = 3 * 4 * heads * tokens**2
    peak = rest * width
    if _SCORES_TOKENS.search(cls):
        peak = max(peak, (config_size(config, "vocab_size") or 0) + rest * width // 2)
    return (kept * layers * width + peak) * tokens * element + attention


def _transformer_width(config: JsonConfig) -> int | None:
    heads = config_size(config, "num_attention_heads")
    head = config_size(config, "attention_head_dim")
    if heads and head:
        return heads * head
    return config_size(config, "dim", "hidden_size", "inner_dim", "model_dim", "d_model")


def _image_tokens(folder: Path, config: JsonConfig, latent: int) -> int | None:
    """The image's tokens: latent pixels in patches, by the network or packed by the pipeline."""
    channels = config_size(decoder_config(folder), "latent_channels", "z_dim")
    taken = config_size(config, "in_channels")
    if channels and taken == 4 * channels:
        return latent // 4
    patch = config_size(config, "patch_size", "all_patch_size")
    return None if patch is None else -(-latent // patch**2)


def _video_base(config: JsonConfig) -> int | None:
    """The channels of a video VAE's last stage, which some image models use; else `None`."""
    return config_size(config, "decoder_base_dim", "base_dim")


def _decoder_width(config: JsonConfig) -> float | None:
    """Peak numbers per decoded pixel."""
    cls = str(config.get("_class_name"))
    if base := _video_base(config):
        return _VIDEO_DECODER * base
    if config.get("decoder_block_out_channels"):
        channels, stage = config["decoder_block_out_channels"], 0
    else:
        channels, stage = config.get("block_out_channels"), 1
    if not isinstance(channels, list) or config_size({"channels": channels}, "channels") is None:
        return None
    default = _SPATIAL_NORM_DECODER if config.get("norm_type") == "spatial" else _DECODER
    return _DECODER_FACTORS.get(cls, default) * int(channels[min(stage, len(channels) - 1)])
