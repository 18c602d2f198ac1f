"""The families of denoisers, and the tensor names and sizes that tell one from another.

Names and sizes are those of diffusers' single_file_utils, of its own modules, and of ComfyUI's
layouts, which the files on Civitai and the Hub have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from t2i_cli.models.safetensors_header import TensorHeader

Task = (
    Literal["text-to-image", "video", "audio", "3d", "inpainting", "refiner", "upscaler"]
    | (Literal["editing"])
)
"""What a family's models make; of given images but for the first four."""

_NO_SINGLE_FILE = "diffusers reads no single files of this family"

_MODULAR = "diffusers has it as a modular pipeline only"


class Family(NamedTuple):
    """A family of models: its name for people, what it makes, and its denoiser's kind."""

    title: str
    task: Task = "text-to-image"
    denoiser: Literal["unet", "transformer"] = "transformer"
    refusal: str | None = None
    """Why its files cannot be run though they make images from text."""


_UNET: Literal["unet"] = "unet"

FAMILIES: dict[str, Family] = {
    "sd15": Family("Stable Diffusion 1", denoiser=_UNET),
    "sd15-inpainting": Family("Stable Diffusion 1 inpainting", "inpainting", _UNET),
    "sd15-editing": Family("InstructPix2Pix", "editing", _UNET),
    "zero123": Family("Stable Zero123", "3d", _UNET),
    "sd2": Family("Stable Diffusion 2", denoiser=_UNET),
    "sd2-inpainting": Family("Stable Diffusion 2 inpainting", "inpainting", _UNET),
    "sd2-depth": Family("Stable Diffusion 2 depth", "editing", _UNET),
    "sd2-unclip": Family("Stable unCLIP", "editing", _UNET),
    "sd2-upscaler": Family("Stable Diffusion x4 upscaler", "upscaler", _UNET),
    "sdxl": Family("Stable Diffusion XL", denoiser=_UNET),
    "sdxl-inpainting": Family("Stable Diffusion XL inpainting", "inpainting", _UNET),
    "sdxl-editing": Family("an editing model of Stable Diffusion XL", "editing", _UNET),
    "sdxl-refiner": Family("Stable Diffusion XL refiner", "refiner", _UNET),
    "playground-v2.5": Family("Playground 2.5", denoiser=_UNET),
    "kolors": Family("Kolors", denoiser=_UNET, refusal=_NO_SINGLE_FILE),
    "svd": Family("Stable Video Diffusion", "video", _UNET),
    "animatediff": Family("AnimateDiff", "video", _UNET),
    "stable-cascade": Family(
        "Stable Cascade", denoiser=_UNET, refusal="it is one of the model's two stages"
    ),
    "sd3": Family("Stable Diffusion 3"),
    "sd35-medium": Family("Stable Diffusion 3.5 medium"),
    "sd35-large": Family("Stable Diffusion 3.5 large"),
    "flux-dev": Family("FLUX.1 dev"),
    "flux-schnell": Family("FLUX.1 schnell"),
    "flux-fill": Family("FLUX.1 Fill", "inpainting"),
    "flux-control": Family("FLUX.1 Canny or Depth", "editing"),
    "chroma": Family("Chroma"),
    "chroma-radiance": Family("Chroma Radiance", refusal=_NO_SINGLE_FILE),
    "ovis-image": Family("Ovis-Image", refusal=_NO_SINGLE_FILE),
    "longcat-image": Family("LongCat-Image", refusal=_NO_SINGLE_FILE),
    "flux2-dev": Family("FLUX.2 dev"),
    "flux2-klein": Family("FLUX.2 klein 4B"),
    "flux2-klein-9b": Family("FLUX.2 klein 9B"),
    "flux3": Family("FLUX.3", refusal=_MODULAR),
    "flux3-distilled": Family("FLUX.3, distilled", refusal=_MODULAR),
    "z-image": Family("Z-Image"),
    "z-image-omni": Family("Z-Image Omni"),
    "lumina2": Family("Lumina Image 2"),
    "qwen-image": Family("Qwen-Image"),
    "qwen-image-editing": Family("Qwen-Image Edit or Layered", "editing"),
    "qwen-image-2.1": Family("Qwen-Image 2.1"),
    "krea2": Family("Krea 2"),
    "ernie-image": Family("ERNIE-Image"),
    "auraflow": Family("AuraFlow"),
    "hidream": Family("HiDream-I1"),
    "sana": Family("Sana"),
    "pixart-alpha": Family("PixArt-alpha", refusal=_NO_SINGLE_FILE),
    "pixart-sigma": Family("PixArt-Sigma", refusal=_NO_SINGLE_FILE),
    "hunyuan-dit": Family("Hunyuan-DiT", refusal=_NO_SINGLE_FILE),
    "hunyuan-image": Family("HunyuanImage", refusal=_NO_SINGLE_FILE),
    "cogview4": Family("CogView4", refusal=_NO_SINGLE_FILE),
    "kandinsky5": Family("Kandinsky 5", refusal=_NO_SINGLE_FILE),
    "prx": Family("PRX", refusal=_NO_SINGLE_FILE),
    "cosmos2": Family("Cosmos-Predict2 text to image"),
    "anima": Family("Anima", refusal=_NO_SINGLE_FILE),
    "wan": Family("Wan", "video"),
    "ltx-video": Family("LTX-Video", "video"),
    "ltx2": Family("LTX-2", "video"),
    "hunyuan-video": Family("HunyuanVideo", "video"),
    "mochi": Family("Mochi", "video"),
    "cogvideox": Family("CogVideoX", "video"),
    "cosmos": Family("Cosmos", "video"),
    "minimax-h3": Family("MiniMax H3", "video"),
    "stable-audio": Family("Stable Audio", "audio"),
    "ace-step": Family("ACE-Step", "audio"),
    "hunyuan-3d": Family("Hunyuan3D", "3d"),
}


@dataclass(frozen=True)
class _Signature:
    """Tensors that a family's denoiser has, sizes of some of them by dimension, and has not."""

    family: str
    names: tuple[str, ...]
    sizes: Mapping[tuple[str, int], int] = field(default_factory=dict)
    absent: tuple[str, ...] = ()

    def fits(self, tensors: Mapping[str, TensorHeader]) -> bool:
        """Whether the denoiser with these tensors is of the family."""
        return (
            all(name in tensors for name in self.names)
            and not any(name in tensors for name in self.absent)
            and all(_size(tensors, *key) == size for key, size in self.sizes.items())
        )


def _size(tensors: Mapping[str, TensorHeader], name: str, dimension: int) -> int | None:
    """The size of a tensor in one dimension, `None` if it has no such one."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[dimension] if dimension < len(shape) else None


_IN, _KEYS = "input_blocks.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_XL_KEYS = "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
_LABEL = "label_emb.0.0.weight"
_XL_DEEP = "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight"
_CONV = "conv_in.weight"
_DOWN_KEYS = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
_ADD = "add_embedding.linear_1.weight"
_XL_DOWN_DEEP = "down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_k.weight"
_JOINT = "joint_blocks.0.context_block.adaLN_modulation.1.bias"
_CONTEXT_NORM = "transformer_blocks.0.norm1_context.linear.weight"
_DOUBLE = "double_blocks.0.img_attn.qkv.weight"
_VECTOR = "vector_in.in_layer.weight"
_SINGLE = "single_transformer_blocks.0.proj_mlp.weight"
_EMBED = "time_text_embed.text_embedder.linear_1.weight"
_REFINED = "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.weight"
_REFINED_NORM = "txt_in.individual_token_refiner.blocks.0.norm1.weight"
_TOKENS = "context_embedder.proj_in.weight"
_PATCH = "patch_embedding.weight"
_COSMOS = ("x_embedder.proj.1.weight", "blocks.0.self_attn.q_proj.weight")

_SIGNATURES = (
    # UNets as ldm has them.
    _Signature("svd", (_IN, "input_blocks.1.1.time_stack.0.attn1.to_q.weight")),
    _Signature("svd", (_IN, "input_blocks.1.1.time_mix_blocks.0.attn1.to_q.weight")),
    _Signature("sd2-upscaler", (_IN,), {(_IN, 1): 7}),
    _Signature("sdxl-refiner", (_LABEL,), {(_LABEL, 1): 2560}),
    _Signature("sdxl-inpainting", (), {(_LABEL, 1): 2816, (_IN, 1): 9}),
    _Signature("sdxl-editing", (), {(_LABEL, 1): 2816, (_IN, 1): 8}),
    _Signature("sdxl", (_XL_DEEP,), {(_LABEL, 1): 2816, (_IN, 1): 4, (_XL_KEYS, 1): 2048}),
    _Signature("sd2-inpainting", (), {(_IN, 1): 9, (_KEYS, 1): 1024}),
    _Signature("sd2-depth", (), {(_IN, 1): 5, (_KEYS, 1): 1024}),
    _Signature("sd2-unclip", (_LABEL,), {(_IN, 1): 4, (_KEYS, 1): 1024}),
    _Signature("sd2", (), {(_IN, 1): 4, (_KEYS, 1): 1024}),
    _Signature("sd15-inpainting", (), {(_IN, 1): 9, (_KEYS, 1): 768}),
    _Signature("sd15-editing", (), {(_IN, 1): 8, (_KEYS, 1): 768}),
    _Signature("sd15", (), {(_IN, 1): 4, (_KEYS, 1): 768}),
    # UNets as diffusers has them.
    _Signature("svd", (_CONV, "down_blocks.0.attentions.0.time_pos_embed.linear_1.weight")),
    _Signature("animatediff", (_CONV, "down_blocks.0.motion_modules.0.norm.weight")),
    _Signature("kolors", ("encoder_hid_proj.weight", _ADD), {(_ADD, 1): 5632}),
    _Signature("sd2-upscaler", (), {(_CONV, 1): 7}),
    _Signature("sdxl-refiner", (), {(_ADD, 1): 2560}),
    _Signature("sdxl-inpainting", (), {(_ADD, 1): 2816, (_CONV, 1): 9}),
    _Signature("sdxl-editing", (), {(_ADD, 1): 2816, (_CONV, 1): 8}),
    _Signature("sdxl", (_XL_DOWN_DEEP,), {(_ADD, 1): 2816, (_CONV, 1): 4}),
    _Signature("sd2-inpainting", (), {(_CONV, 1): 9, (_DOWN_KEYS, 1): 1024}),
    _Signature("sd2-depth", (), {(_CONV, 1): 5, (_DOWN_KEYS, 1): 1024}),
    _Signature("sd2-unclip", ("class_embedding.linear_1.weight",), {(_DOWN_KEYS, 1): 1024}),
    _Signature("sd2", (), {(_CONV, 1): 4, (_DOWN_KEYS, 1): 1024}),
    _Signature("sd15-inpainting", (), {(_CONV, 1): 9, (_DOWN_KEYS, 1): 768}),
    _Signature("sd15-editing", (), {(_CONV, 1): 8, (_DOWN_KEYS, 1): 768}),
    _Signature("sd15", (), {(_CONV, 1): 4, (_DOWN_KEYS, 1): 768}),
    # Other UNets.
    _Signature("stable-cascade", ("clf.1.weight", "down_blocks.0.0.channelwise.0.weight")),
    # Stable Diffusion 3.
    _Signature("sd35-medium", (_JOINT, "joint_blocks.0.x_block.attn2.qkv.weight")),
    _Signature("sd35-large", (_JOINT, "joint_blocks.37.x_block.mlp.fc1.weight")),
    _Signature("sd3", (_JOINT,), {(_JOINT, 0): 9216}),
    _Signature("sd35-medium", (_CONTEXT_NORM, "transformer_blocks.0.attn2.to_q.weight")),
    _Signature(
        "sd35-large", (_CONTEXT_NORM, "pos_embed.pos_embed"), {("pos_embed.proj.weight", 0): 2432}
    ),
    _Signature("sd3", (_CONTEXT_NORM, "pos_embed.proj.weight", "context_embedder.weight")),
    # FLUX and what is built like it; HunyuanVideo has blocks of the same names.
    _Signature("hunyuan-image", (_REFINED_NORM,), {("img_in.proj.weight", 1): 64}),
    _Signature("hunyuan-video", (_REFINED_NORM,)),
    _Signature("hunyuan-video", (_REFINED,)),
    _Signature("hunyuan-image", (_TOKENS,), {("x_embedder.proj.weight", 1): 64}),
    _Signature("hunyuan-video", (_TOKENS,)),
    _Signature("flux3-distilled", ("ref_time_in.in_layer.weight",)),
    _Signature("flux3", ("early_stream_modulations.image.lin.weight",)),
    _Signature("flux3", ("early_stream_modulations.image.linear.weight",)),
    *(
        _Signature(family, (f"single_stream_modulation.{linear}.weight",), {(entry, 0): width})
        for linear, entry in (("lin", "img_in.weight"), ("linear", "x_embedder.weight"))
        for family, width in (("flux2-klein", 3072), ("flux2-klein-9b", 4096), ("flux2-dev", 6144))
    ),
    _Signature("chroma-radiance", (_DOUBLE, "nerf_blocks.0.norm.scale")),
    _Signature("chroma-radiance", (_DOUBLE, "nerf_blocks.0.norm.weight")),
    _Signature("chroma", ("distilled_guidance_layer.in_proj.weight",)),
    _Signature("ovis-image", (_DOUBLE, "double_blocks.0.img_mlp.gate_proj.weight")),
    _Signature("longcat-image", (_DOUBLE,), {("txt_in.weight", 1): 3584}, absent=(_VECTOR,)),
    _Signature("flux-fill", (_DOUBLE,), {("img_in.weight", 1): 384}),
    _Signature("flux-control", (_DOUBLE,), {("img_in.weight", 1): 128}),
    _Signature("flux-dev", (_DOUBLE, "guidance_in.in_layer.weight")),
    _Signature("flux-schnell", (_DOUBLE, _VECTOR)),
    _Signature("ovis-image", (_SINGLE, "context_embedder_norm.weight")),
    _Signature(
        "longcat-image",
        (_SINGLE, "time_embed.timestep_embedder.linear_1.weight"),
        {("context_embedder.weight", 1): 3584},
    ),
    _Signature("flux-fill", (_SINGLE, _EMBED), {("x_embedder.weight", 1): 384}),
    _Signature("flux-control", (_SINGLE, _EMBED), {("x_embedder.weight", 1): 128}),
    _Signature(
        "flux-dev", (_SINGLE, _EMBED, "time_text_embed.guidance_embedder.linear_1.weight")
    ),
    _Signature("flux-schnell", (_SINGLE, _EMBED)),
    # Other transformers for images.
    _Signature("z-image-omni", ("layers.0.adaLN_modulation.0.weight", "siglip_embedder.0.weight")),
    _Signature("z-image", ("layers.0.adaLN_modulation.0.weight", "cap_embedder.1.weight")),
    _Signature("lumina2", ("layers.0.adaLN_modulation.1.weight", "cap_embedder.1.weight")),
    _Signature("lumina2", ("time_caption_embed.caption_embedder.1.weight",)),
    _Signature("qwen-image-2.1", ("txt_in.text_norm.weight",)),
    _Signature("qwen-image-editing", ("txt_norm.weight", "__index_timestep_zero__")),
    _Signature(
        "qwen-image-editing", ("txt_norm.weight", "time_text_embed.addition_t_embedding.weight")
    ),
    _Signature("qwen-image", ("transformer_blocks.0.img_mod.1.weight", "txt_norm.weight")),
    _Signature("krea2", ("txtfusion.projector.weight",)),
    _Signature("krea2", ("text_fusion.projector.weight",)),
    _Signature("ernie-image", ("final_linear.weight", "layers.0.mlp.linear_fc2.weight")),
    _Signature("auraflow", ("double_layers.0.attn.w2q.weight", "cond_seq_linear.weight")),
    _Signature("auraflow", ("joint_transformer_blocks.0.attn.add_q_proj.weight",)),
    _Signature("hidream", ("double_stream_blocks.0.block.adaLN_modulation.1.bias",)),
    _Signature("sana", ("blocks.0.mlp.inverted_conv.conv.weight", "attention_y_norm.weight")),
    _Signature("sana", ("transformer_blocks.0.ff.conv_inverted.weight",)),
    _Signature("pixart-alpha", ("t_block.1.weight",), {("y_embedder.y_embedding", 0): 120}),
    _Signature("pixart-sigma", ("t_block.1.weight",), {("y_embedder.y_embedding", 0): 300}),
    _Signature(
        "pixart-alpha",
        ("adaln_single.emb.aspect_ratio_embedder.linear_1.weight", "pos_embed.proj.weight"),
    ),
    _Signature("pixart-sigma", ("adaln_single.linear.weight", "pos_embed.proj.weight")),
    _Signature("hunyuan-dit", ("mlp_t5.0.weight",)),
    _Signature("cogview4", ("time_condition_embed.condition_embedder.linear_1.weight",)),
    _Signature("kandinsky5", ("visual_embeddings.in_layer.weight",)),
    _Signature("prx", ("blocks.0.attention.img_qkv_proj.weight",)),
    _Signature("anima", (*_COSMOS, "llm_adapter.blocks.0.cross_attn.q_proj.weight")),
    _Signature("cosmos2", _COSMOS, {(_COSMOS[0], 1): 68}),
    # What makes no images.
    _Signature("cosmos", _COSMOS),
    _Signature("cosmos", ("blocks.block0.blocks.0.block.attn.to_q.0.weight",)),
    _Signature("wan", ("head.modulation", _PATCH)),
    _Signature("wan", ("condition_embedder.text_embedder.linear_1.weight", _PATCH)),
    _Signature("ltx2", ("audio_adaln_single.linear.weight",)),
    _Signature("ltx2", ("audio_proj_in.weight", "audio_scale_shift_table")),
    _Signature("ltx2", ("av_ca_a2v_gate_adaln_single.emb.timestep_embedder.linear_1.weight",)),
    _Signature("ltx-video", ("patchify_proj.weight",)),
    _Signature("ltx-video", ("proj_in.weight", "scale_shift_table", "time_embed.linear.weight")),
    _Signature("mochi", ("t5_yproj.weight",)),
    _Signature("mochi", ("blocks.0.attn.qkv_x.weight",)),
    _Signature("mochi", ("time_embed.pooler.to_kv.weight", "time_embed.caption_proj.weight")),
    _Signature("cogvideox", ("patch_embed.text_proj.weight", "time_embedding.linear_1.weight")),
    _Signature("cosmos", ("patch_embed.proj.weight", "time_embed.t_embedder.linear_1.weight")),
    _Signature("minimax-h3", ("video_patch_proj.weight",)),
    _Signature("stable-audio", ("transformer.rotary_pos_emb.inv_freq",)),
    _Signature("stable-audio", ("preprocess_conv.weight", "postprocess_conv.weight")),
    _Signature("ace-step", ("genre_embedder.weight",)),
    _Signature("hunyuan-3d", ("latent_in.weight", "cond_in.weight")),
)  # fmt: skip
"""In the order in which they are tried: a particular one before those that it would fit, too."""


def family_of_denoiser(tensors: Mapping[str, TensorHeader]) -> str | None:
    """The family of a denoiser by its tensors, whose names have no prefix; `None` if unknown."""
    return next((one.family for one in _SIGNATURES if one.fits(tensors)), None)
