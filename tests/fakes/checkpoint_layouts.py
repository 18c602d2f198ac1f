"""Names and shapes of the tensors of real files, as many as tell what a file is.

Taken from diffusers' conversions and from public files; blocks after the first are left out.
"""

from typing import NamedTuple

from tests.fakes.checkpoint_files import Shapes

_MODEL = "model.diffusion_model."


class Layout(NamedTuple):
    """A file's tensors, what they are, and diffusers' name of it if it has one."""

    shapes: Shapes
    kind: str
    family: str | None
    diffusers: str | None = None


def flux_block(guidance: bool = True, inputs: int = 64) -> dict[str, tuple[int, ...]]:
    """All tensors of a FLUX.1 transformer with one block of each kind, at its width of 3072."""
    width, mlp = 3072, 12288
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, given: int, taken: int) -> None:
        shapes[f"{name}.weight"] = (given, taken)
        shapes[f"{name}.bias"] = (given,)

    linear("img_in", width, inputs)
    linear("txt_in", width, 4096)
    for name, taken in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        if guidance or name != "guidance_in":
            linear(f"{name}.in_layer", width, taken)
            linear(f"{name}.out_layer", width, width)
    for side in ("img", "txt"):
        block = f"double_blocks.0.{side}"
        linear(f"{block}_mod.lin", 6 * width, width)
        linear(f"{block}_attn.qkv", 3 * width, width)
        linear(f"{block}_attn.proj", width, width)
        shapes[f"{block}_attn.norm.query_norm.scale"] = (128,)
        shapes[f"{block}_attn.norm.key_norm.scale"] = (128,)
        linear(f"{block}_mlp.0", mlp, width)
        linear(f"{block}_mlp.2", width, mlp)
    linear("single_blocks.0.modulation.lin", 3 * width, width)
    linear("single_blocks.0.linear1", 3 * width + mlp, width)
    linear("single_blocks.0.linear2", width, width + mlp)
    shapes["single_blocks.0.norm.query_norm.scale"] = (128,)
    shapes["single_blocks.0.norm.key_norm.scale"] = (128,)
    linear("final_layer.linear", 64, width)
    linear("final_layer.adaLN_modulation.1", 2 * width, width)
    return shapes


def prefixed(shapes: Shapes, prefix: str = _MODEL) -> dict[str, tuple[int, ...]]:
    """The tensors under a prefix, as checkpoints have a denoiser's."""
    return {prefix + name: shape for name, shape in shapes.items()}


def ldm_unet(
    inputs: int, context: int, label: int | None = None, channels: int = 320
) -> dict[str, tuple[int, ...]]:
    """Tensors of a UNet: of SDXL's levels if it has a label of more than a thousand features."""
    attention = "transformer_blocks.0.attn2.to_k.weight"
    shapes = {
        "input_blocks.0.0.weight": (channels, inputs, 3, 3),
        "time_embed.0.weight": (4 * channels, channels),
        "out.2.weight": (4, channels, 3, 3),
    }
    if label is None:
        shapes[f"input_blocks.1.1.{attention}"] = (channels, context)
        shapes[f"input_blocks.2.1.{attention}"] = (channels, context)
        shapes["output_blocks.11.0.skip_connection.weight"] = (channels, 2 * channels, 1, 1)
        return shapes
    shapes["label_emb.0.0.weight"] = (4 * channels, label)
    shapes[f"input_blocks.4.1.{attention}"] = (2 * channels, context)
    deep = attention.replace("blocks.0", "blocks.9" if label == 2816 else "blocks.3")
    shapes[f"input_blocks.8.1.{deep}"] = (4 * channels, context)
    return shapes


_LDM_VAE = {
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
    "first_stage_model.encoder.conv_out.weight": (8, 512, 3, 3),
}
_LDM_CLIP = {
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": (77, 768),
}
_OPEN_CLIP = {"cond_stage_model.model.token_embedding.weight": (49408, 1024)}
_XL_BASE = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
_XL_REFINER = "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"
_XL_CLIPS = {
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (
        49408,
        768,
    ),
    "conditioner.embedders.1.model.token_embedding.weight": (49408, 1280),
    _XL_BASE: (1280,),
}
_SD3 = {
    "joint_blocks.0.context_block.adaLN_modulation.1.bias": (9216,),
    "joint_blocks.0.x_block.mlp.fc1.weight": (6144, 1536),
    "x_embedder.proj.weight": (1536, 16, 2, 2),
}
_SD3_PARTS = {
    "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    "text_encoders.clip_g.transformer.text_model.embeddings.token_embedding.weight": (49408, 1280),
    "text_encoders.t5xxl.transformer.shared.weight": (32128, 4096),
    "first_stage_model.decoder.conv_in.weight": (512, 16, 3, 3),
}
_FLUX2 = {
    "single_stream_modulation.lin.weight": (18432, 6144),
    "img_in.weight": (6144, 128),
    "double_blocks.0.img_attn.qkv.weight": (18432, 6144),
    "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
}
_WAN = {
    "head.modulation": (1, 2, 1536),
    "patch_embedding.weight": (1536, 16, 1, 2, 2),
    "blocks.0.self_attn.q.weight": (1536, 1536),
}
_COSMOS2 = {
    "net.x_embedder.proj.1.weight": (2048, 68),
    "net.blocks.0.self_attn.q_proj.weight": (2048, 2048),
    "net.pos_embedder.dim_spatial_range": (21,),
}
_Z_IMAGE = {
    "layers.0.adaLN_modulation.0.weight": (15360, 256),
    "layers.0.attention.qkv.weight": (11520, 3840),
    "cap_embedder.0.weight": (2560,),
    "cap_embedder.1.weight": (3840, 2560),
    "x_embedder.weight": (3840, 64),
}
_QWEN = {
    "transformer_blocks.0.img_mod.1.weight": (18432, 3072),
    "txt_norm.weight": (3584,),
    "img_in.weight": (3072, 64),
}
_FLUX = flux_block()

LAYOUTS: dict[str, Layout] = {
    "sd15": Layout(prefixed(ldm_unet(4, 768)) | _LDM_VAE | _LDM_CLIP, "checkpoint", "sd15", "v1"),
    "sd15 unet": Layout(prefixed(ldm_unet(4, 768)), "unet", "sd15", "v1"),
    "sd15 unet, bare": Layout(ldm_unet(4, 768), "unet", "sd15"),
    "sd15 inpainting": Layout(
        prefixed(ldm_unet(9, 768)) | _LDM_VAE | _LDM_CLIP,
        "checkpoint",
        "sd15-inpainting",
        "inpainting",
    ),
    "pix2pix": Layout(
        prefixed(ldm_unet(8, 768)) | _LDM_VAE, "checkpoint", "sd15-editing", "instruct-pix2pix"
    ),
    "sd2": Layout(prefixed(ldm_unet(4, 1024)) | _LDM_VAE | _OPEN_CLIP, "checkpoint", "sd2", "v2"),
    "sd2 inpainting": Layout(
        prefixed(ldm_unet(9, 1024)) | _LDM_VAE, "checkpoint", "sd2-inpainting", "inpainting_v2"
    ),
    "sd2 depth": Layout(prefixed(ldm_unet(5, 1024)) | _LDM_VAE, "checkpoint", "sd2-depth"),
    "x4 upscaler": Layout(
        prefixed(ldm_unet(7, 1024, channels=256))
        | prefixed({"input_blocks.10.0.skip_connection.bias": (1024,)})
        | _LDM_VAE,
        "checkpoint",
        "sd2-upscaler",
    ),
    "sdxl": Layout(
        prefixed(ldm_unet(4, 2048, 2816)) | _LDM_VAE | _XL_CLIPS, "checkpoint", "sdxl", "xl_base"
    ),
    "sdxl inpainting": Layout(
        prefixed(ldm_unet(9, 2048, 2816)) | _LDM_VAE | _XL_CLIPS,
        "checkpoint",
        "sdxl-inpainting",
        "xl_inpaint",
    ),
    "sdxl refiner": Layout(
        prefixed(ldm_unet(4, 1280, 2560, 384)) | _LDM_VAE | {_XL_REFINER: (1280,)},
        "checkpoint",
        "sdxl-refiner",
        "xl_refiner",
    ),
    "playground": Layout(
        prefixed(ldm_unet(4, 2048, 2816)) | _LDM_VAE | {"edm_mean": (1, 4, 1, 1)},
        "checkpoint",
        "playground-v2.5",
        "playground-v2-5",
    ),
    "sd3": Layout(
        prefixed(_SD3 | {"pos_embed": (1, 36864, 1536)}) | _SD3_PARTS, "checkpoint", "sd3", "sd3"
    ),
    "sd3.5 medium": Layout(
        _SD3
        | {"pos_embed": (1, 147456, 1536), "joint_blocks.0.x_block.attn2.qkv.weight": (4608, 1536)},
        "transformer",
        "sd35-medium",
        "sd35_medium",
    ),
    "sd3.5 large": Layout(
        {
            "joint_blocks.0.context_block.adaLN_modulation.1.bias": (14592,),
            "joint_blocks.37.x_block.mlp.fc1.weight": (9728, 2432),
            "pos_embed": (1, 36864, 2432),
        },
        "transformer",
        "sd35-large",
        "sd35_large",
    ),
    "flux dev": Layout(_FLUX, "transformer", "flux-dev", "flux-dev"),
    "flux dev, all in one": Layout(
        prefixed(_FLUX)
        | {
            "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight": (
                49408,
                768,
            ),
            "text_encoders.t5xxl.transformer.shared.weight": (32128, 4096),
            "vae.decoder.conv_in.weight": (512, 16, 3, 3),
        },
        "checkpoint",
        "flux-dev",
        "flux-dev",
    ),
    "flux schnell": Layout(
        flux_block(guidance=False), "transformer", "flux-schnell", "flux-schnell"
    ),
    "flux fill": Layout(flux_block(inputs=384), "transformer", "flux-fill", "flux-fill"),
    "flux depth": Layout(flux_block(inputs=128), "transformer", "flux-control", "flux-depth"),
    "chroma": Layout(
        {
            "distilled_guidance_layer.in_proj.bias": (5120,),
            "distilled_guidance_layer.in_proj.weight": (5120, 64),
            "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
        },
        "transformer",
        "chroma",
        "chroma",
    ),
    "flux2 dev": Layout(_FLUX2, "transformer", "flux2-dev", "flux-2-dev"),
    "flux2 klein": Layout(
        prefixed(
            {
                "single_stream_modulation.lin.weight": (9216, 3072),
                "img_in.weight": (3072, 128),
                "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
            }
        ),
        "transformer",
        "flux2-klein",
        "flux-2-dev",
    ),
    "flux3": Layout(
        {"early_stream_modulations.image.lin.weight": (9216, 3072)},
        "transformer",
        "flux3",
        "flux-3-image",
    ),
    "z-image": Layout(prefixed(_Z_IMAGE), "transformer", "z-image", "z-image-turbo"),
    "lumina2": Layout(
        {
            "layers.0.adaLN_modulation.1.weight": (9216, 1024),
            "cap_embedder.0.weight": (2304,),
            "cap_embedder.1.weight": (2304, 2304),
        },
        "transformer",
        "lumina2",
        "lumina2",
    ),
    "qwen-image": Layout(prefixed(_QWEN), "transformer", "qwen-image"),
    "qwen-image-2.1": Layout(
        {"txt_in.text_norm.weight": (2560,), "img_in.weight": (3072, 64)},
        "transformer",
        "qwen-image-2.1",
        "qwen-image-2.1",
    ),
    "krea2": Layout(
        {"txtfusion.projector.weight": (12, 1), "blocks.0.attn.wq.weight": (6144, 6144)},
        "transformer",
        "krea2",
        "krea2",
    ),
    "auraflow": Layout(
        {
            "double_layers.0.attn.w2q.weight": (3072, 3072),
            "double_layers.0.attn.w1q.weight": (3072, 3072),
            "cond_seq_linear.weight": (3072, 2048),
            "t_embedder.mlp.0.weight": (3072, 256),
        },
        "transformer",
        "auraflow",
        "auraflow",
    ),
    "hidream": Layout(
        {
            "double_stream_blocks.0.block.adaLN_modulation.1.bias": (30720,),
            "caption_projection.0.linear.weight": (2560, 4096),
        },
        "transformer",
        "hidream",
        "hidream",
    ),
    "sana": Layout(
        {
            "blocks.0.cross_attn.q_linear.weight": (2240, 2240),
            "blocks.0.mlp.inverted_conv.conv.weight": (11200, 2240, 1, 1),
            "attention_y_norm.weight": (2240,),
            "t_block.1.weight": (13440, 2240),
            "y_embedder.y_embedding": (300, 2304),
        },
        "transformer",
        "sana",
        "sana",
    ),
    "pixart sigma": Layout(
        {
            "blocks.0.mlp.fc1.weight": (4608, 1152),
            "t_block.1.weight": (6912, 1152),
            "y_embedder.y_embedding": (300, 4096),
        },
        "transformer",
        "pixart-sigma",
    ),
    "cosmos2": Layout(_COSMOS2, "transformer", "cosmos2", "cosmos-2.0-t2i-2B"),
    "cosmos2 video": Layout(
        _COSMOS2 | {"net.x_embedder.proj.1.weight": (2048, 72)},
        "transformer",
        "cosmos",
        "cosmos-2.0-v2w-2B",
    ),
    "wan": Layout(prefixed(_WAN), "transformer", "wan", "wan-t2v-1.3B"),
    "ltx": Layout(
        prefixed({"patchify_proj.weight": (2048, 128)})
        | {"vae.decoder.conv_in.conv.weight": (512, 128, 3, 3, 3)},
        "checkpoint",
        "ltx-video",
        "ltx-video",
    ),
    "hunyuan video": Layout(
        prefixed(
            {
                "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias": (6144,),
                "txt_in.individual_token_refiner.blocks.0.norm1.weight": (3072,),
                "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
                "img_in.proj.weight": (3072, 16, 1, 2, 2),
                "vector_in.in_layer.weight": (3072, 768),
            }
        ),
        "transformer",
        "hunyuan-video",
    ),
    "mochi": Layout(
        {"blocks.0.attn.qkv_x.weight": (9216, 3072)}, "transformer", "mochi", "mochi-1-preview"
    ),
    "svd": Layout(
        prefixed(
            ldm_unet(8, 1024) | {"input_blocks.1.1.time_stack.0.attn1.to_q.weight": (320, 320)}
        )
        | _LDM_VAE,
        "checkpoint",
        "svd",
    ),
    "stable audio": Layout(
        {"model.model.transformer.rotary_pos_emb.inv_freq": (16,)}, "transformer", "stable-audio"
    ),
    "controlnet": Layout(
        {
            "control_model.time_embed.0.weight": (1280, 320),
            "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
        },
        "controlnet",
        None,
        "controlnet",
    ),
    "vae": Layout(
        {name.removeprefix("first_stage_model."): shape for name, shape in _LDM_VAE.items()},
        "vae",
        None,
    ),
    "clip-l": Layout(
        {
            name.removeprefix("cond_stage_model.transformer."): shape
            for name, shape in _LDM_CLIP.items()
        },
        "text_encoder",
        "clip-l",
    ),
    "t5-xxl": Layout(
        {
            "shared.weight": (32128, 4096),
            "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096),
        },
        "text_encoder",
        "t5-xxl",
    ),
    "qwen3-4b": Layout(
        {
            "model.embed_tokens.weight": (151936, 2560),
            "model.layers.0.self_attn.q_proj.weight": (4096, 2560),
        },
        "text_encoder",
        "qwen3-4b",
    ),
    "clip vision": Layout(
        {"vision_model.embeddings.class_embedding": (1280,)}, "image_encoder", None
    ),
    "embedding sd15": Layout({"emb_params": (4, 768)}, "embedding", "sd15"),
    "embedding sdxl": Layout({"clip_l": (2, 768), "clip_g": (2, 1280)}, "embedding", "sdxl"),
    "embedding by word": Layout({"<cat-toy>": (768,)}, "embedding", "sd15"),
    "upscaler": Layout({"conv_first.weight": (64, 3, 3, 3)}, "upscaler", None),
    "ip-adapter": Layout(
        {"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)},
        "ip_adapter",
        None,
    ),
    "motion module": Layout(
        {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,)},
        "motion_module",
        None,
    ),
    "language of another kind": Layout({"some.layer.weight": (3, 4)}, "unknown", None),
}
