"""Folders of pipelines to measure with: postcard's, or a real model's shape with random weights."""

from pathlib import Path

from t2i_cli.models.libraries import LibraryObject
from t2i_cli.postcard import FOLDER

NAMES = ("postcard", "sd15", "sdxl")
NATIVE = {"postcard": 128, "sd15": 512, "sdxl": 1024}
"""Pixels a side."""


def folder(name: str, into: Path) -> Path:
    """The model's diffusers folder; one with random weights is saved to `into`, in fp16."""
    if name == "postcard":
        return FOLDER
    import torch

    torch.manual_seed(0)
    random_pipeline(name, torch.device("cpu")).to(torch.float16).save_pretrained(into)
    return into


def random_pipeline(name: str, device: LibraryObject) -> LibraryObject:
    """A pipeline whose networks are made on a torch.device, in torch's default dtype."""
    with device:
        networks = _sd15() if name == "sd15" else _sdxl()
    # Outside: a scheduler's tables belong on the CPU.
    networks.register_modules(scheduler=_scheduler())
    return networks


def _sd15() -> LibraryObject:
    """Stable Diffusion 1.5, from the configs of its repository."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    return StableDiffusionPipeline(
        vae=_vae(512),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                hidden_act="quick_gelu",
            )
        ),
        tokenizer=clip_tokenizer(),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> LibraryObject:
    """Stable Diffusion XL base 1.0, from the configs of its repository."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
    )

    first = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    second = CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
        hidden_act="gelu",
    )
    return StableDiffusionXLPipeline(
        vae=_vae(1024),
        text_encoder=CLIPTextModel(first),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        scheduler=None,
    )


def _vae(side: int) -> LibraryObject:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=side,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )


def clip_tokenizer() -> LibraryObject:
    """postcard's: the words differ, and the 77 tokens are the same work."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(FOLDER / "tokenizer", model_max_length=77)


def _scheduler() -> LibraryObject:
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
