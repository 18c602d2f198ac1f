"""Names tiny transformers as their families' own files do: the inverse of diffusers' conversions.

By what diffusers/loaders/single_file_utils.py reads; FLUX's is in single_files.py.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from tests.fakes.single_files import Tensors, flux_1

COMFY = "model.diffusion_model."
"""What ComfyUI's files put before the names of a denoiser."""
_ORDER = ("q", "k", "v")

_Renames = Sequence[tuple[str, str]]


def _renamed(tensors: Tensors, renames: _Renames) -> Tensors:
    """The tensors by other names: each pattern is replaced in turn."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return found


def _fused(tensors: Tensors, fused: Mapping[str, str]) -> Tensors:
    """The tensors with those of a query, key and value in one; `part` in a pattern is which."""
    import torch

    found = dict(tensors)
    for pattern, target in fused.items():
        groups: dict[str, dict[str, object]] = {}
        for name in tensors:
            if match := re.fullmatch(pattern, name):
                groups.setdefault(match.expand(target), {})[match["part"]] = found.pop(name)
        found |= {
            name: torch.cat([parts[each] for each in _ORDER if each in parts])  # type: ignore[misc]
            for name, parts in groups.items()
        }
    return found


def _swapped(tensors: Tensors, pattern: str) -> Tensors:
    """The tensors with the halves of some exchanged: scale and shift."""
    import torch

    return {
        name: torch.cat(tensor.chunk(2)[::-1]) if re.fullmatch(pattern, name) else tensor
        for name, tensor in tensors.items()
    }


def stable_diffusion_3(own: Tensors) -> Tensors:
    """Stability's names of SD 3 and 3.5."""
    layers = {int(m[1]) for name in own if (m := re.match(r"transformer_blocks\.(\d+)", name))}
    own = _swapped(
        own,
        rf"(norm_out|transformer_blocks\.{max(layers)}\.norm1_context)\.linear\.(weight|bias)",
    )
    block = r"transformer_blocks\.(\d+)"
    own = _fused(
        own,
        {
            rf"{block}\.(attn2?)\.to_(?P<part>[qkv])\.(\w+)": r"joint_blocks.\1.x_block.\2.qkv.\4",
            rf"{block}\.attn\.add_(?P<part>[qkv])_proj\.(\w+)": (
                r"joint_blocks.\1.context_block.attn.qkv.\3"
            ),
        },
    )
    return _renamed(
        own,
        (
            (rf"{block}\.attn\.norm_added_(\w)", r"joint_blocks.\1.context_block.attn.ln_\2"),
            (rf"{block}\.(attn2?)\.norm_(\w)", r"joint_blocks.\1.x_block.\2.ln_\3"),
            (rf"{block}\.(attn2?)\.to_out\.0", r"joint_blocks.\1.x_block.\2.proj"),
            (rf"{block}\.attn\.to_add_out", r"joint_blocks.\1.context_block.attn.proj"),
            (rf"{block}\.norm1\.linear", r"joint_blocks.\1.x_block.adaLN_modulation.1"),
            (
                rf"{block}\.norm1_context\.linear",
                r"joint_blocks.\1.context_block.adaLN_modulation.1",
            ),
            (rf"{block}\.ff\.", r"joint_blocks.\1.x_block.mlp."),
            (rf"{block}\.ff_context\.", r"joint_blocks.\1.context_block.mlp."),
            (r"net\.0\.proj", "fc1"),
            (r"net\.2", "fc2"),
            (r"^pos_embed\.proj", "x_embedder.proj"),
            (r"^pos_embed\.pos_embed", "pos_embed"),
            (r"time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
            (r"time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
            (r"time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
            (r"time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
            (r"^proj_out", "final_layer.linear"),
            (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
        ),
    )


def aura_flow(own: Tensors) -> Tensors:
    """Fal's names of AuraFlow."""
    joint, single = r"joint_transformer_blocks\.(\d+)", r"^single_transformer_blocks\.(\d+)"
    return _renamed(
        _swapped(own, r"norm_out\.linear\.weight"),
        (
            (rf"{joint}\.attn\.to_(\w)\.", r"double_layers.\1.attn.w2\2."),
            (rf"{joint}\.attn\.to_out\.0", r"double_layers.\1.attn.w2o"),
            (rf"{joint}\.attn\.add_(\w)_proj", r"double_layers.\1.attn.w1\2"),
            (rf"{joint}\.attn\.to_add_out", r"double_layers.\1.attn.w1o"),
            (rf"{joint}\.norm1\.linear", r"double_layers.\1.modX.1"),
            (rf"{joint}\.norm1_context\.linear", r"double_layers.\1.modC.1"),
            (rf"{joint}\.ff\.", r"double_layers.\1.mlpX."),
            (rf"{joint}\.ff_context\.", r"double_layers.\1.mlpC."),
            (rf"{single}\.attn\.to_(\w)\.", r"single_layers.\1.attn.w1\2."),
            (rf"{single}\.attn\.to_out\.0", r"single_layers.\1.attn.w1o"),
            (rf"{single}\.norm1\.linear", r"single_layers.\1.modCX.1"),
            (rf"{single}\.ff\.", r"single_layers.\1.mlp."),
            (r"(mlp\w?\.)linear_", r"\1c_fc"),
            (r"(mlp\w?\.)out_projection", r"\1c_proj"),
            (r"^time_step_proj\.linear_1", "t_embedder.mlp.0"),
            (r"^time_step_proj\.linear_2", "t_embedder.mlp.2"),
            (r"^context_embedder", "cond_seq_linear"),
            (r"^proj_out", "final_linear"),
            (r"^norm_out\.linear", "modF.1"),
            (r"^pos_embed\.pos_embed", "positional_encoding"),
            (r"^pos_embed\.proj", "init_x_linear"),
        ),
    )


def lumina_2(own: Tensors) -> Tensors:
    """Alpha-VLLM's names of Lumina Image 2, with a norm that nothing uses."""
    import torch

    found = _renamed(
        _fused(own, {r"(.+)\.attn\.to_(?P<part>[qkv])\.weight": r"\1.attention.qkv.weight"}),
        (
            (r"\.attn\.", ".attention."),
            (r"\.to_out\.0\.", ".out."),
            (r"\.norm_(q|k)\.", r".\1_norm."),
            (r"(context_refiner\.\d+)\.norm(\d)\.", r"\1.attention_norm\2."),
            (r"\.norm1\.norm\.", ".attention_norm1."),
            (r"\.norm2\.", ".attention_norm2."),
            (r"\.norm1\.linear\.", ".adaLN_modulation.1."),
            (r"(feed_forward)\.linear_(\d)", r"\1.w\2"),
            (r"^time_caption_embed\.caption_embedder", "cap_embedder"),
            (r"^time_caption_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
            (r"^time_caption_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
            (r"^norm_out\.linear_1", "final_layer.adaLN_modulation.1"),
            (r"^norm_out\.linear_2", "final_layer.linear"),
        ),
    )
    return found | {"norm_final.weight": torch.ones(8)}


def sana(own: Tensors) -> Tensors:
    """NVIDIA's names of Sana, with the two tables that diffusers leaves out."""
    import torch

    block = r"transformer_blocks\.(\d+)"
    found = _fused(
        own,
        {
            rf"{block}\.attn1\.to_(?P<part>[qkv])\.weight": r"blocks.\1.attn.qkv.weight",
            rf"{block}\.attn2\.to_(?P<part>[kv])\.(\w+)": r"blocks.\1.cross_attn.kv_linear.\3",
        },
    )
    found = _renamed(
        found,
        (
            (rf"^{block}\.attn2\.to_q", r"blocks.\1.cross_attn.q_linear"),
            (rf"^{block}\.attn2\.to_out\.0", r"blocks.\1.cross_attn.proj"),
            (rf"^{block}\.attn1\.to_out\.0", r"blocks.\1.attn.proj"),
            (rf"^{block}\.ff\.conv_inverted", r"blocks.\1.mlp.inverted_conv.conv"),
            (rf"^{block}\.ff\.conv_depth", r"blocks.\1.mlp.depth_conv.conv"),
            (rf"^{block}\.ff\.conv_point", r"blocks.\1.mlp.point_conv.conv"),
            (rf"^{block}\.scale_shift_table", r"blocks.\1.scale_shift_table"),
            (r"^scale_shift_table", "final_layer.scale_shift_table"),
            (r"^proj_out", "final_layer.linear"),
            (r"^patch_embed\.proj", "x_embedder.proj"),
            (r"^time_embed\.emb\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
            (r"^time_embed\.emb\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
            (r"^time_embed\.linear", "t_block.1"),
            (r"^caption_projection\.linear_(\d)", r"y_embedder.y_proj.fc\1"),
            (r"^caption_norm", "attention_y_norm"),
        ),
    )
    return found | {"pos_embed": torch.zeros(1, 4, 8), "y_embedder.y_embedding": torch.zeros(3, 16)}


def flux_2(own: Tensors) -> Tensors:
    """Black Forest Labs' names of FLUX.2."""
    block = r"^transformer_blocks\.(\d+)"
    found = _fused(
        _swapped(own, r"norm_out\.linear\.weight"),
        {
            rf"{block}\.attn\.to_(?P<part>[qkv])\.weight": (
                r"double_blocks.\1.img_attn.qkv.weight"
            ),
            rf"{block}\.attn\.add_(?P<part>[qkv])_proj\.weight": (
                r"double_blocks.\1.txt_attn.qkv.weight"
            ),
        },
    )
    single = r"^single_transformer_blocks\.(\d+)\.attn"
    return _renamed(
        found,
        (
            (rf"{block}\.attn\.norm_q\.weight", r"double_blocks.\1.img_attn.norm.query_norm.scale"),
            (rf"{block}\.attn\.norm_k\.weight", r"double_blocks.\1.img_attn.norm.key_norm.scale"),
            (
                rf"{block}\.attn\.norm_added_q\.weight",
                r"double_blocks.\1.txt_attn.norm.query_norm.scale",
            ),
            (
                rf"{block}\.attn\.norm_added_k\.weight",
                r"double_blocks.\1.txt_attn.norm.key_norm.scale",
            ),
            (rf"{block}\.attn\.to_out\.0", r"double_blocks.\1.img_attn.proj"),
            (rf"{block}\.attn\.to_add_out", r"double_blocks.\1.txt_attn.proj"),
            (rf"{block}\.ff\.linear_in", r"double_blocks.\1.img_mlp.0"),
            (rf"{block}\.ff\.linear_out", r"double_blocks.\1.img_mlp.2"),
            (rf"{block}\.ff_context\.linear_in", r"double_blocks.\1.txt_mlp.0"),
            (rf"{block}\.ff_context\.linear_out", r"double_blocks.\1.txt_mlp.2"),
            (rf"{single}\.to_qkv_mlp_proj", r"single_blocks.\1.linear1"),
            (rf"{single}\.to_out", r"single_blocks.\1.linear2"),
            (rf"{single}\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
            (rf"{single}\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
            (r"modulation(\w*)\.linear", r"modulation\1.lin"),
            (r"^x_embedder", "img_in"),
            (r"^context_embedder", "txt_in"),
            (r"^time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
            (r"^time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
            (r"^time_guidance_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
            (r"^time_guidance_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
            (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
            (r"^proj_out", "final_layer.linear"),
        ),
    )


def z_image(own: Tensors) -> Tensors:
    """ComfyUI's names of Z-Image, with query, key and value in one."""
    return _renamed(
        _fused(own, {r"(.+)\.attention\.to_(?P<part>[qkv])\.weight": r"\1.attention.qkv.weight"}),
        (
            (r"\.attention\.to_out\.0", ".attention.out"),
            (r"\.attention\.norm_(q|k)", r".attention.\1_norm"),
            (r"^all_final_layer\.2-1", "final_layer"),
            (r"^all_x_embedder\.2-1", "x_embedder"),
        ),
    )


def cosmos_2(own: Tensors) -> Tensors:
    """NVIDIA's names of Cosmos-Predict2."""
    return _renamed(
        own,
        (
            (r"^time_embed\.t_embedder", "t_embedder.1"),
            (r"^time_embed\.norm", "t_embedding_norm"),
            (r"\.norm1\.linear_", ".adaln_modulation_self_attn."),
            (r"\.norm2\.linear_", ".adaln_modulation_cross_attn."),
            (r"\.norm3\.linear_", ".adaln_modulation_mlp."),
            (r"\.attn1\.", ".self_attn."),
            (r"\.attn2\.", ".cross_attn."),
            (r"\.to_(q|k|v)\.", r".\1_proj."),
            (r"\.to_out\.0", ".output_proj"),
            (r"\.norm_(q|k)\.", r".\1_norm."),
            (r"\.ff\.net\.0\.proj", ".mlp.layer1"),
            (r"\.ff\.net\.2", ".mlp.layer2"),
            (r"^patch_embed\.proj", "x_embedder.proj.1"),
            (r"^norm_out\.linear_", "final_layer.adaln_modulation."),
            (r"^proj_out", "final_layer.linear"),
            (r"^transformer_blocks", "blocks"),
        ),
    )


def krea_2(own: Tensors) -> Tensors:
    """Krea's names of Krea 2, with a block's six modulations in one vector."""
    flat = {
        name: tensor.flatten()
        if re.fullmatch(r"transformer_blocks\.\d+\.scale_shift_table", name)
        else tensor
        for name, tensor in own.items()
    }
    return _renamed(
        flat,
        (
            (r"\.attn\.to_(q|k|v)\.", r".attn.w\1."),
            (r"\.attn\.to_out\.0\.", ".attn.wo."),
            (r"\.attn\.to_gate\.", ".attn.gate."),
            (r"\.attn\.norm_(q|k)\.weight", r".attn.qknorm.\1norm.scale"),
            (r"\.ff\.", ".mlp."),
            (r"\.norm1\.weight", ".prenorm.scale"),
            (r"\.norm2\.weight", ".postnorm.scale"),
            (r"^(transformer_blocks\.\d+)\.scale_shift_table", r"\1.mod.lin"),
            (r"^transformer_blocks\.", "blocks."),
            (r"^text_fusion\.", "txtfusion."),
            (r"^txt_in\.norm\.weight", "txtmlp.0.scale"),
            (r"^txt_in\.linear_1\.", "txtmlp.1."),
            (r"^txt_in\.linear_2\.", "txtmlp.3."),
            (r"^time_embed\.linear_1\.", "tmlp.0."),
            (r"^time_embed\.linear_2\.", "tmlp.2."),
            (r"^time_mod_proj\.", "tproj.1."),
            (r"^img_in\.", "first."),
            (r"^final_layer\.linear\.", "last.linear."),
            (r"^final_layer\.norm\.weight", "last.norm.scale"),
            (r"^final_layer\.scale_shift_table", "last.modulation.lin"),
        ),
    )


def chroma(own: Tensors) -> Tensors:
    """Lodestone's names of Chroma: FLUX.1's, and a layer in place of the modulations."""
    return flux_1(own) | {
        re.sub(
            r"norms\.(\d+)\.weight", r"norms.\1.scale", re.sub(r"linear_1", "in_layer", name)
        ).replace("linear_2", "out_layer"): tensor
        for name, tensor in own.items()
        if name.startswith("distilled_guidance_layer.")
    }


def as_diffusers(own: Tensors) -> Tensors:
    """Families whose own files have diffusers' names: Qwen-Image, HiDream, ERNIE-Image."""
    return dict(own)


def prefixed(layout: Callable[[Tensors], Tensors], prefix: str) -> Callable[[Tensors], Tensors]:
    """A layout with something before every name."""
    return lambda own: {prefix + name: tensor for name, tensor in layout(own).items()}
