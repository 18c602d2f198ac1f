"""Writes tiny diffusers models as single files: ldm's layout, FLUX's own, and GGUF.

The names are the inverse of what diffusers/loaders/single_file_utils.py reads.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from t2i_cli.models.libraries import LibraryObject

Tensors = dict[str, LibraryObject]

_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP_WIDTH = 1024
"""Of Stable Diffusion 2's encoder, which its files have by OpenCLIP's names."""
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def save_checkpoint(
    folder: Path, file: Path, dtype: str = "float32", more: Mapping[str, object] | None = None
) -> Path:
    """Write a folder of SD 1.5's, SD 2's or SDXL's kind as one file of ldm's layout.

    `more` are further tensors, by name.
    """
    unet = load_part(folder, "unet")
    config = read_config(folder, "unet")
    found = {
        f"model.diffusion_model.{unet_name(name, config)}": tensor for name, tensor in unet.items()
    }
    found |= {f"first_stage_model.{n}": t for n, t in ldm_vae(folder).items()}
    text = load_part(folder, "text_encoder")
    xl = (folder / "text_encoder_2").is_dir()
    prefix = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
    if config["cross_attention_dim"] == _OPEN_CLIP_WIDTH:
        found |= _open_clip(text, "cond_stage_model.model.")
    else:
        found |= {prefix + text_model(name): tensor for name, tensor in text.items()}
    if xl:
        found |= _open_clip(load_part(folder, "text_encoder_2"), "conditioner.embedders.1.model.")
    return save(found | dict(more or {}), file, dtype)


def save(tensors: Mapping[str, object], file: Path, dtype: str | None = None) -> Path:
    """Write tensors as a safetensors file, in one dtype if it is given."""
    import torch
    from safetensors.torch import save_file

    def cast(tensor: LibraryObject) -> LibraryObject:
        same = dtype is None or not tensor.is_floating_point()
        return (tensor if same else tensor.to(getattr(torch, str(dtype)))).contiguous().clone()

    save_file({name: cast(tensor) for name, tensor in tensors.items()}, file)
    return file


def read_config(folder: Path, part: str) -> dict[str, LibraryObject]:
    """A part's config."""
    import json

    found: dict[str, LibraryObject] = json.loads((folder / part / "config.json").read_text())
    return found


def load_part(folder: Path, part: str) -> Tensors:
    """The tensors of one part."""
    from safetensors.torch import load_file

    [file] = (folder / part).glob("*.safetensors")
    found: Tensors = load_file(file)
    return found


def text_model(name: str) -> str:
    """A tensor's name below `text_model`, which newer encoders leave out."""
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def unet_name(name: str, config: Mapping[str, LibraryObject]) -> str:
    """ldm's name of a tensor of diffusers' UNet."""
    for ours, theirs in _UNET.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    layers = config["layers_per_block"]
    mid = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name)
    if mid:
        place = 2 * int(mid[2]) + (mid[1] == "attentions")
        return f"middle_block.{place}.{_resnet(mid[3]) if mid[1] == 'resnets' else mid[3]}"
    side, block, kind, layer, rest = re.fullmatch(  # type: ignore[union-attr]
        r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name
    ).groups()
    per_block = layers + 1
    if side == "down":
        place = int(block) * per_block + int(layer) + 1
        if kind == "downsamplers":
            return f"input_blocks.{(int(block) + 1) * per_block}.0.{rest.replace('conv', 'op')}"
        blocks = "input_blocks"
    else:
        place = int(block) * per_block + int(layer)
        if kind == "upsamplers":
            attends = "CrossAttn" in config["up_block_types"][int(block)]
            return f"output_blocks.{(int(block) + 1) * per_block - 1}.{1 + attends}.{rest}"
        blocks = "output_blocks"
    if kind == "attentions":
        return f"{blocks}.{place}.1.{rest}"
    return f"{blocks}.{place}.0.{_resnet(rest)}"


def _resnet(rest: str) -> str:
    head, _, tail = rest.partition(".")
    return f"{_RESNET[head]}.{tail}"


def ldm_vae(folder: Path) -> Tensors:
    """The tensors of a folder's VAE by ldm's names."""
    stages = len(read_config(folder, "vae")["block_out_channels"])
    return {
        _vae_name(name, stages): tensor[..., None, None]
        if "mid_block.attentions" in name and tensor.dim() == 2
        else tensor
        for name, tensor in load_part(folder, "vae").items()
    }


def _vae_name(name: str, stages: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if match := re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.+)\.(weight|bias)", name):
        return f"{match[1]}mid.attn_1.{_VAE_ATTENTION[match[2]]}.{match[3]}"
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    last = stages - 1
    name = re.sub(
        r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", name
    )
    return re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name
    )


def _open_clip(tensors: Tensors, prefix: str) -> Tensors:
    """A text encoder by OpenCLIP's names, with query, key and value in one tensor."""
    import torch

    names = {text_model(name): tensor for name, tensor in tensors.items()}
    found = {
        "token_embedding.weight": names["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": names["text_model.embeddings.position_embedding.weight"],
        "ln_final.weight": names["text_model.final_layer_norm.weight"],
        "ln_final.bias": names["text_model.final_layer_norm.bias"],
    }
    width = found["positional_embedding"].shape[1]
    found["text_projection"] = names.get("text_projection.weight", torch.eye(width)).T
    for name, tensor in names.items():
        match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None:
            continue
        block = f"transformer.resblocks.{match[1]}"
        if match[2] in _OPEN_CLIP:
            found[f"{block}.{_OPEN_CLIP[match[2]]}.{match[3]}"] = tensor
        elif match[2] == "self_attn.q_proj":
            others = (name.replace("q_proj", f"{each}_proj") for each in "qkv")
            found[f"{block}.attn.in_proj_{match[3]}"] = torch.cat([names[n] for n in others])
    return {prefix + name: tensor for name, tensor in found.items()}


_FLUX = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
}
_FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
}
_FLUX_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}


def flux_1(own: Tensors) -> Tensors:
    """A transformer of FLUX.1's kind by the names of Black Forest Labs' files."""
    import torch

    found: Tensors = {}
    for name, tensor in own.items():
        stem, _, kind = name.rpartition(".")
        if stem in _FLUX:
            found[f"{_FLUX[stem]}.{kind}"] = tensor
        elif stem == "norm_out.linear":
            scale, shift = tensor.chunk(2)
            found[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
        elif match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", stem):
            block, part = f"double_blocks.{match[1]}", match[2]
            if part in _FLUX_DOUBLE:
                found[f"{block}.{_FLUX_DOUBLE[part]}.{kind}"] = tensor
            elif part in _FLUX_NORMS:
                found[f"{block}.{_FLUX_NORMS[part]}.scale"] = tensor
            elif part in {"attn.to_q", "attn.add_q_proj"}:
                parts = [own[name.replace("_q", f"_{each}")] for each in "qkv"]
                side = "img" if part == "attn.to_q" else "txt"
                found[f"{block}.{side}_attn.qkv.{kind}"] = torch.cat(parts)
        elif match := re.fullmatch(r"single_transformer_blocks\.(\d+)\.(.+)", stem):
            block, part = f"single_blocks.{match[1]}", match[2]
            if part == "attn.to_q":
                parts = [own[name.replace("to_q", f"to_{each}")] for each in "qkv"]
                mlp = own[name.replace("attn.to_q", "proj_mlp")]
                found[f"{block}.linear1.{kind}"] = torch.cat([*parts, mlp])
            elif part in {"proj_out", "norm.linear"}:
                theirs = {"proj_out": "linear2", "norm.linear": "modulation.lin"}[part]
                found[f"{block}.{theirs}.{kind}"] = tensor
            elif part.startswith("attn.norm_"):
                which = {"q": "query_norm", "k": "key_norm"}[part[-1]]
                found[f"{block}.norm.{which}.scale"] = tensor
    return found


def save_gguf(
    tensors: Tensors,
    file: Path,
    is_quantized: Callable[[str], bool],
    architecture: str = "flux",
) -> Path:
    """Write tensors as GGUF, those of some names as Q8_0, whose rows are blocks of 32 numbers."""
    import gguf

    writer = gguf.GGUFWriter(file, architecture)
    for name, tensor in tensors.items():
        array = tensor.float().numpy()
        if is_quantized(name) and array.ndim == 2 and array.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
