"""Tiny models whose decisive sizes are those of their families, so that their files are recognised.

Widths of texts are real (768, 1280, 2048); there are few channels and few layers.
"""

from pathlib import Path

from t2i_cli.models.libraries import LibraryObject
from tests import tiny_encoders, tiny_language, tiny_models
from tests.fakes import single_files
from tests.tiny_models import clip_tokenizer, stable_diffusion_3, t5_tokenizer, vae
from tests.tiny_unets import small_unet, stable_diffusion


def _encoder(cls: str, width: int) -> LibraryObject:
    import transformers

    tokenizer = clip_tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_size=width,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=width,
    )
    return getattr(transformers, cls)(config)


def sd15() -> LibraryObject:
    """Stable Diffusion 1.5 as its files are recognised: the UNet reads 768 features."""
    return stable_diffusion(
        "StableDiffusionPipeline",
        text_encoder=_encoder("CLIPTextModel", 768),
        unet=small_unet(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=768,
        ),
    )


def sdxl() -> LibraryObject:
    """Stable Diffusion XL as its files are recognised."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    unet = small_unet(
        sample_size=16,
        block_out_channels=(8, 8, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        transformer_layers_per_block=(1, 2, 10),
        projection_class_embeddings_input_dim=6 * 256 + 1280,
        cross_attention_dim=2048,
    )
    return StableDiffusionXLPipeline(
        vae=vae(4),
        text_encoder=_encoder("CLIPTextModel", 768),
        text_encoder_2=_encoder("CLIPTextModelWithProjection", 1280),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def sd2() -> LibraryObject:
    """Stable Diffusion 2 as its files are recognised: the UNet reads 1024 features."""
    return stable_diffusion(
        "StableDiffusionPipeline",
        text_encoder=_encoder("CLIPTextModel", 1024),
        unet=small_unet(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=1024,
            use_linear_projection=True,
        ),
    )


def sd3() -> LibraryObject:
    """Stable Diffusion 3 with all three encoders."""
    import transformers

    pipe = stable_diffusion_3(layers=2)
    pipe.register_modules(
        # As wide as the two others beside each other.
        text_encoder_3=transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=64, d_model=64, d_kv=8, d_ff=64, num_layers=1, num_heads=4
            )
        ),
        tokenizer_3=t5_tokenizer(),
    )
    return pipe


def chroma() -> LibraryObject:
    """Chroma at its own width, which diffusers fixes where it reads single files."""
    import torch
    from diffusers import ChromaTransformer2DModel

    pipe = tiny_encoders.chroma()
    transformer: LibraryObject = ChromaTransformer2DModel
    pipe.register_modules(
        vae=vae(16),
        transformer=transformer(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=32,
            axes_dims_rope=(16, 56, 56),
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ).to(torch.bfloat16),
    )
    return pipe


def lumina2() -> LibraryObject:
    """Lumina Image 2 at its own width, which diffusers fixes where it reads single files."""
    import torch
    from diffusers import Lumina2Transformer2DModel

    pipe = tiny_language.lumina2()
    transformer: LibraryObject = Lumina2Transformer2DModel
    pipe.register_modules(
        transformer=transformer(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            hidden_size=2304,
            num_layers=1,
            num_refiner_layers=2,
            num_attention_heads=24,
            num_kv_heads=8,
            multiple_of=16,
            ffn_dim_multiplier=0.01,
            axes_dim_rope=(32, 32, 32),
            axes_lens=(512, 128, 128),
            cap_feat_dim=16,
        ).to(torch.bfloat16),
    )
    return pipe


def save_sd15(root: Path) -> Path:
    """Save a folder `sd15`, a file of it, and its VAE as a file; returns `root`."""
    tiny_models.save_pipeline(sd15, root / "sd15")
    single_files.save_checkpoint(root / "sd15", root / "sd15.safetensors")
    single_files.save(single_files.ldm_vae(root / "sd15"), root / "vae.safetensors")
    return root
