"""Tiny pipelines around Stable Diffusion's UNet and CLIP's text encoders, with random weights.

Shapes follow diffusers' own fast tests.
"""

from collections.abc import Callable
from functools import partial

from t2i_cli.models.libraries import LibraryObject
from tests.tiny_models import clip, clip_tokenizer, vae

_UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def small_unet(**more: object) -> LibraryObject:
    """Stable Diffusion's UNet of two stages, whose cross attention reads 32 features."""
    from diffusers import UNet2DConditionModel

    shape: dict[str, object] = {
        "sample_size": 32,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "norm_num_groups": 2,
    }
    return UNet2DConditionModel(**(shape | more))


def ddim_scheduler() -> LibraryObject:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
    )


def stable_diffusion(cls: str, **more: object) -> LibraryObject:
    """A pipeline of that class with Stable Diffusion's components, without a safety checker."""
    import diffusers

    parts: dict[str, object] = {
        "vae": vae(4),
        "text_encoder": clip("CLIPTextModel"),
        "tokenizer": clip_tokenizer(),
        "unet": small_unet(),
        "scheduler": ddim_scheduler(),
    }
    return getattr(diffusers, cls)(**(parts | _UNCHECKED | more))


def _self_attention_guidance() -> LibraryObject:
    """Its attention maps are read at the middle block, which has none in a UNet without it."""
    return stable_diffusion("StableDiffusionSAGPipeline", unet=small_unet(layers_per_block=2))


def _safe() -> LibraryObject:
    return stable_diffusion("StableDiffusionPipelineSafe", image_encoder=None)


def _parallel_steps() -> LibraryObject:
    from diffusers import DDIMParallelScheduler

    scheduler = DDIMParallelScheduler.from_config(ddim_scheduler().config)
    return stable_diffusion("StableDiffusionParadigmsPipeline", scheduler=scheduler)


def _model_editing() -> LibraryObject:
    from diffusers import PNDMScheduler

    return stable_diffusion(
        "StableDiffusionModelEditingPipeline", scheduler=PNDMScheduler(skip_prk_steps=True)
    )


def _perturbed_xl() -> LibraryObject:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPAGPipeline

    network = small_unet(
        block_out_channels=(16, 32),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + 32,
        cross_attention_dim=64,
    )
    return StableDiffusionXLPAGPipeline(
        vae=vae(4),
        text_encoder=clip("CLIPTextModel"),
        text_encoder_2=clip("CLIPTextModelWithProjection"),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=network,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def builders() -> dict[str, Callable[[], LibraryObject]]:
    """What makes each class's pipeline."""
    return {
        "SemanticStableDiffusionPipeline": partial(
            stable_diffusion, "SemanticStableDiffusionPipeline"
        ),
        "StableDiffusionModelEditingPipeline": _model_editing,
        "StableDiffusionPAGPipeline": partial(stable_diffusion, "StableDiffusionPAGPipeline"),
        "StableDiffusionPanoramaPipeline": partial(
            stable_diffusion, "StableDiffusionPanoramaPipeline"
        ),
        "StableDiffusionParadigmsPipeline": _parallel_steps,
        "StableDiffusionPipeline": partial(stable_diffusion, "StableDiffusionPipeline"),
        "StableDiffusionPipelineSafe": _safe,
        "StableDiffusionSAGPipeline": _self_attention_guidance,
        "StableDiffusionXLPAGPipeline": _perturbed_xl,
    }
