"""Files of weights in the layouts that people have: ldm's, ComfyUI's, GGUF; tiny, or of holes.

Tiny pipelines are converted backwards to ldm's names, with the sizes by which a family is known;
headers of large models are written before data that is a hole in the file and takes no disk.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

from t2i_cli.models.libraries import LibraryObject
from tests import tiny_models, tiny_unets

Shapes = Mapping[str, tuple[int, ...]]
Weights = dict[str, LibraryObject]

_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1, "I64": 8}


def write_header(
    path: Path,
    shapes: Shapes,
    dtype: str = "F16",
    *,
    metadata: Mapping[str, str] | None = None,
    dtypes: Mapping[str, str] | None = None,
) -> Path:
    """Write a safetensors file whose tensors are zeros, and a hole on the disk."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        kind = (dtypes or {}).get(name, dtype)
        begin, end = end, end + math.prod(shape) * _BYTES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + end)
    return path


def gguf_header(
    shapes: Shapes, metadata: Mapping[str, str | int | list[str]] | None = None
) -> bytes:
    """The header of a GGUF file of version 3, whose tensors are Q8_0, or F32 if they are vectors.

    Sizes stand from the innermost; rows are multiples of 32, Q8_0's block.
    """
    pairs = {"general.architecture": "flux"} | dict(metadata or {})
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(pairs))
    for key, value in pairs.items():
        head += _gguf_text(key) + _gguf_value(value)
    end = 0
    for name, shape in shapes.items():
        quantised = len(shape) > 1 and shape[-1] % 32 == 0
        head += _gguf_text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", 8 if quantised else 0, end)
        end += math.prod(shape) // 32 * 34 if quantised else math.prod(shape) * 4
        end += -end % 32
    return head + bytes(-len(head) % 32)


def write_gguf(
    path: Path, shapes: Shapes, metadata: Mapping[str, str | int | list[str]] | None = None
) -> Path:
    """Write a GGUF file whose tensors are zeros, and a hole on the disk."""
    head = gguf_header(shapes, metadata)
    size = sum(math.prod(shape) * 4 + 32 for shape in shapes.values())
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    return path


def _gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _gguf_value(value: str | int | list[str]) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _gguf_text(value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_gguf_text, value))


def save_ldm_checkpoint(
    pipeline: LibraryObject,
    path: Path,
    dtype: str = "float16",
    metadata: dict[str, str] | None = None,
) -> Path:
    """Save a tiny pipeline of Stable Diffusion or SDXL as one file in ldm's layout."""
    import torch
    from safetensors.torch import save_file

    xl = hasattr(pipeline, "text_encoder_2")
    weights = _prefixed("model.diffusion_model.", ldm_unet(pipeline.unet))
    weights |= _prefixed("first_stage_model.", ldm_vae(pipeline.vae))
    first = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
    weights |= _prefixed(first, _clip(pipeline.text_encoder))
    if xl:
        second = open_clip(pipeline.text_encoder_2)
        weights |= _prefixed("conditioner.embedders.1.model.", second)
    target = getattr(torch, dtype)
    stored = {name: each.to(target).contiguous() for name, each in weights.items()}
    save_file(stored, path, metadata=metadata)
    return path


def tiny_sd15() -> LibraryObject:
    """A tiny Stable Diffusion pipeline with the levels and the text width of 1.5."""
    import torch

    torch.manual_seed(0)
    return tiny_unets.stable_diffusion(
        "StableDiffusionPipeline",
        unet=tiny_unets.small_unet(**_levels((8, 8, 16, 16)), cross_attention_dim=768),
        text_encoder=_wide_clip("CLIPTextModel", 768),
        vae=tiny_models.vae(4, stages=4),
    )


def tiny_sdxl() -> LibraryObject:
    """A tiny SDXL pipeline with the levels, depths and text widths of SDXL."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    levels = _levels((8, 16, 16))
    levels["down_block_types"] = ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2)
    levels["up_block_types"] = (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D")
    unet = tiny_unets.small_unet(
        **levels,
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        transformer_layers_per_block=(1, 2, 10),
        projection_class_embeddings_input_dim=2816,
        cross_attention_dim=2048,
    )
    return StableDiffusionXLPipeline(
        vae=tiny_models.vae(4, stages=4),
        text_encoder=_wide_clip("CLIPTextModel", 768),
        text_encoder_2=_wide_clip("CLIPTextModelWithProjection", 1280),
        tokenizer=tiny_models.clip_tokenizer(),
        tokenizer_2=tiny_models.clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def _levels(channels: tuple[int, ...]) -> dict[str, object]:
    count = len(channels) - 1
    return {
        "block_out_channels": channels,
        "layers_per_block": 2,
        "down_block_types": (*["CrossAttnDownBlock2D"] * count, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * count),
    }


def _wide_clip(cls: str, width: int) -> LibraryObject:
    """A text encoder of one layer, as wide as the family's."""
    import transformers

    narrow = tiny_models.clip(cls)
    config = transformers.CLIPTextConfig(
        **narrow.config.to_dict()
        | {"hidden_size": width, "projection_dim": width, "num_hidden_layers": 1}
        | {"intermediate_size": 64}
    )
    return getattr(transformers, cls)(config)


def _prefixed(prefix: str, weights: Mapping[str, LibraryObject]) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def ldm_unet(unet: LibraryObject) -> Weights:
    """A UNet's weights by ldm's names, without the prefix."""
    return {_ldm_unet_name(name, unet.config): tensor for name, tensor in unet.state_dict().items()}


def _ldm_unet_name(name: str, config: LibraryObject) -> str:
    per_block = config["layers_per_block"] + 1
    for theirs, ldm in _UNET_ENDS.items():
        if name.startswith(f"{theirs}."):
            return ldm + _in_resnet(name[len(theirs) :], "resnets" in theirs)
    side, level, kind, layer, rest = name.split(".", 4)
    index = per_block * int(level) + int(layer)
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{per_block * (int(level) + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{index + 1}." + _in_block(kind, rest)
    if kind == "upsamplers":
        attends = config["up_block_types"][int(level)].startswith("CrossAttn")
        return f"output_blocks.{per_block * (int(level) + 1) - 1}.{2 if attends else 1}.{rest}"
    return f"output_blocks.{index}." + _in_block(kind, rest)


def _in_block(kind: str, rest: str) -> str:
    return f"1.{rest}" if kind == "attentions" else "0" + _in_resnet(f".{rest}", True)


def _in_resnet(rest: str, resnet: bool) -> str:
    if not resnet:
        return rest
    _, layer, parameter = rest.split(".")
    return f".{_RESNET[layer]}.{parameter}"


_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def ldm_vae(vae: LibraryObject) -> Weights:
    """A VAE's weights by ldm's names, without the prefix."""
    stages = len(vae.config["block_out_channels"])
    found = {}
    for name, tensor in vae.state_dict().items():
        ldm = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        ldm = ldm.replace("mid_block.resnets.0", "mid.block_1")
        ldm = ldm.replace("mid_block.resnets.1", "mid.block_2").replace("samplers.0", "sample")
        if "mid_block.attentions.0" in ldm:
            ldm = ldm.replace("mid_block.attentions.0", "mid.attn_1")
            for theirs, own in _VAE_ATTENTION.items():
                ldm = ldm.replace(f".{theirs}.", f".{own}.")
            tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
        for level in range(stages):
            ldm = ldm.replace(f"down_blocks.{level}.resnets", f"down.{level}.block")
            ldm = ldm.replace(f"down_blocks.{level}.", f"down.{level}.")
            ldm = ldm.replace(f"up_blocks.{level}.resnets", f"up.{stages - 1 - level}.block")
            ldm = ldm.replace(f"up_blocks.{level}.", f"up.{stages - 1 - level}.")
        found[ldm] = tensor
    return found


def _clip(encoder: LibraryObject) -> Weights:
    """CLIP's weights by the names of its checkpoints, which transformers 5.6 shortened."""
    return {
        name if name.startswith("text_model.") else f"text_model.{name}": tensor
        for name, tensor in encoder.state_dict().items()
    }


def open_clip(encoder: LibraryObject) -> Weights:
    """The weights of a CLIP encoder by OpenCLIP's names, its projections fused."""
    import torch

    state = encoder.state_dict()
    found = {"text_projection": state.pop("text_projection.weight").T}
    for name, tensor in state.items():
        plain = name.removeprefix("text_model.")
        if plain.startswith("embeddings."):
            kind = "token_embedding.weight" if "token" in plain else "positional_embedding"
            found[kind] = tensor
        elif plain.startswith("final_layer_norm."):
            found[f"ln_final.{plain.rpartition('.')[2]}"] = tensor
        elif ".q_proj." in plain:
            fused = [state[name.replace(".q_proj.", f".{each}_proj.")] for each in "qkv"]
            block = plain.replace("encoder.layers.", "transformer.resblocks.")
            block = block.replace("self_attn.q_proj.", "attn.in_proj_")
            found[block] = torch.cat(fused)
        elif not any(f".{each}_proj." in plain for each in "kv"):
            block = plain.replace("encoder.layers.", "transformer.resblocks.")
            block = block.replace("self_attn.", "attn.").replace("layer_norm", "ln_")
            found[block.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")] = tensor
    return found
