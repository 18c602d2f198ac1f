"""Tiny LoRAs and embeddings in the layouts of the programs that write them, for postcard.

All formats of one `seed` hold the same numbers, so that they make the same image.
"""

import json
import pickle
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from t2i_cli import postcard
from t2i_cli.models.safetensors_header import read_header

Arrays = dict[str, np.ndarray]
RANK = 2
ALPHA = 1.0
"""Half the rank: a program that does not read it makes another image."""
SNOW = Path(__file__).parent.parent / "adapters/snow.safetensors"
"""A LoRA that was trained by training/snow_lora.py: snow on every landscape."""
DENOISER_LAYERS = tuple(
    f"{block}.attentions.0.transformer_blocks.0.{attention}.{layer}"
    for block in ("down_blocks.1", "mid_block", "up_blocks.1")
    for attention in ("attn1", "attn2")
    for layer in ("to_q", "to_k", "to_v", "to_out.0")
)
ENCODER_LAYERS = tuple(
    f"encoder.layers.{number}.{layer}"
    for number in range(2)
    for layer in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1")
)


@cache
def weight_shape(part: str, layer: str) -> tuple[int, ...]:
    """The shape of a layer's weight in postcard."""
    [file] = (postcard.FOLDER / part).glob("*.safetensors")
    tensors = read_header(file).tensors
    name = f"{layer}.weight"
    return tensors[name if name in tensors else f"text_model.{name}"].shape


def factors(
    part: str, layers: tuple[str, ...], seed: int, size: float = 0.3
) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """The two factors of each layer, (rank, in) and (out, rank), with alpha not in them."""
    random = np.random.default_rng(seed)
    found = {}
    for layer in layers:
        out, taken = weight_shape(part, layer)[:2]
        found[layer] = (
            (random.standard_normal((RANK, taken)) * size).astype(np.float32),
            (random.standard_normal((out, RANK)) * size).astype(np.float32),
        )
    return found


def diffusers_tensors(seed: int = 0, *, old: bool = False, encoder: bool = False) -> Arrays:
    """As diffusers saves: `lora_A`, or in earlier versions `processor.to_q_lora.down`.

    It has no alphas: half of it is in one factor.
    """
    found: Arrays = {}
    for layer, (down, up) in factors("unet", DENOISER_LAYERS, seed).items():
        names = (f"unet.{layer}.lora_A.weight", f"unet.{layer}.lora_B.weight")
        if old:
            block, _, end = layer.rpartition(".to_")
            start = f"unet.{block}.processor.to_{end.removesuffix('.0')}_lora"
            names = (f"{start}.down.weight", f"{start}.up.weight")
        found |= dict(zip(names, (down, up * np.float32(ALPHA / RANK)), strict=True))
    if encoder:
        for layer, (down, up) in factors("text_encoder", ENCODER_LAYERS, seed).items():
            start = f"text_encoder.text_model.{layer}.lora_linear_layer"
            found[f"{start}.down.weight"] = down
            found[f"{start}.up.weight"] = up * np.float32(ALPHA / RANK)
    return found


def kohya_tensors(seed: int = 0, *, encoder: bool = False) -> Arrays:
    """As kohya's sd-scripts save: names with underscores, an alpha for each layer."""
    found: Arrays = {}
    parts = {"lora_unet_": factors("unet", DENOISER_LAYERS, seed)}
    if encoder:
        parts["lora_te_text_model_"] = factors("text_encoder", ENCODER_LAYERS, seed)
    for prefix, layers in parts.items():
        for layer, (down, up) in layers.items():
            start = prefix + layer.replace(".", "_")
            found[f"{start}.lora_down.weight"] = down
            found[f"{start}.lora_up.weight"] = up
            found[f"{start}.alpha"] = np.array(ALPHA, np.float32)
    return found


def peft_folder(folder: Path, seed: int = 0) -> Path:
    """As PEFT saves: `base_model.model.`, and a config with the alpha beside the file."""
    folder.mkdir()
    found: Arrays = {}
    for layer, (down, up) in factors("unet", DENOISER_LAYERS, seed).items():
        found[f"base_model.model.{layer}.lora_A.weight"] = down
        found[f"base_model.model.{layer}.lora_B.weight"] = up
    save(folder / "adapter_model.safetensors", found)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def sdxl_tensors() -> Arrays:
    """A LoRA for Stable Diffusion XL: its texts are 2048 wide, its blocks are deep."""
    found: Arrays = {}
    for layer in ("attn2_to_k", "attn2_to_v"):
        start = f"lora_unet_down_blocks_2_attentions_0_transformer_blocks_7_{layer}"
        found[f"{start}.lora_down.weight"] = np.zeros((RANK, 2048), np.float32)
        found[f"{start}.lora_up.weight"] = np.zeros((1280, RANK), np.float32)
        found[f"{start}.alpha"] = np.array(ALPHA, np.float32)
    return found


def flux_tensors() -> Arrays:
    """A LoRA for FLUX.1 in kohya's names."""
    start = "lora_unet_double_blocks_0_img_attn_qkv"
    return {
        f"{start}.lora_down.weight": np.zeros((RANK, 3072), np.float32),
        f"{start}.lora_up.weight": np.zeros((9216, RANK), np.float32),
        f"{start}.alpha": np.array(ALPHA, np.float32),
    }


def embedding_tensors(vectors: int = 1, width: int = 128, *, name: str = "emb_params") -> Arrays:
    """An embedding as AUTOMATIC1111 saves it, or under a token's name as diffusers does."""
    random = np.random.default_rng(7)
    return {name: (random.standard_normal((vectors, width)) * 0.1).astype(np.float32)}


def save(path: Path, tensors: Arrays, metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file; returns its path."""
    save_file(tensors, str(path), metadata)
    return path


def save_pickle(path: Path) -> Path:
    """A pickle that would run code, under whatever name."""

    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("the pickle ran",)

    path.write_bytes(pickle.dumps(Code()))
    return path
