"""Tiny pipelines of families with networks of their own kind, with random weights.

Shapes follow diffusers' own fast tests.
"""

from collections.abc import Callable

from t2i_cli.models.libraries import LibraryObject
from tests.tiny_models import clip, clip_tokenizer, t5, t5_tokenizer, vae


def quantised_vae(*channels: int, **more: object) -> LibraryObject:
    """A VQ model with a stage of each number of channels."""
    from diffusers import VQModel

    return VQModel(
        block_out_channels=list(channels),
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        norm_num_groups=8,
        **more,
    )


def _deep_floyd() -> LibraryObject:
    from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel
    from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker

    unet = UNet2DConditionModel(
        sample_size=32,
        layers_per_block=1,
        block_out_channels=[32, 64],
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        in_channels=3,
        out_channels=6,
        cross_attention_dim=32,
        encoder_hid_dim=32,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.0,
        variance_type="learned_range",
    )
    return IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=IFWatermarker(),
        requires_safety_checker=False,
    )


def _kandinsky3() -> LibraryObject:
    from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet

    unet = Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=4,
        encoder_hid_dim=32,
    )
    decoder = quantised_vae(
        *(32, 32, 32, 64),
        latent_channels=4,
        num_vq_embeddings=12,
        vq_embed_dim=4,
        norm_type="spatial",
    )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        clip_sample=True,
        thresholding=False,
        steps_offset=1,
    )
    return Kandinsky3Pipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5(), unet=unet, scheduler=scheduler, movq=decoder
    )


def _latent_diffusion() -> LibraryObject:
    from diffusers import LDMTextToImagePipeline
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig,
        LDMBertModel,
    )

    from tests.tiny_unets import ddim_scheduler, small_unet

    tokenizer = t5_tokenizer()
    tokenizer.model_max_length = 77
    config: LibraryObject = LDMBertConfig(
        vocab_size=64,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        head_dim=16,
        d_model=32,
    )
    return LDMTextToImagePipeline(
        vqvae=vae(4, stages=4),
        bert=LDMBertModel(config).eval(),
        tokenizer=tokenizer,
        unet=small_unet(),
        scheduler=ddim_scheduler(),
    )


def _amused() -> LibraryObject:
    from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel

    transformer = UVit2DModel(
        hidden_size=8,
        use_bias=False,
        hidden_dropout=0.0,
        cond_embed_dim=32,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=32,
        vocab_size=32,
        codebook_size=8,
        in_channels=8,
        block_out_channels=8,
        num_res_blocks=1,
        downsample=True,
        upsample=True,
        block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        attention_dropout=0.0,
        intermediate_size=8,
    )
    decoder = quantised_vae(
        *(8, 16),
        latent_channels=8,
        num_vq_embeddings=8,
        layers_per_block=1,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    return AmusedPipeline(
        vqvae=decoder,
        tokenizer=clip_tokenizer(),
        text_encoder=clip("CLIPTextModelWithProjection"),
        transformer=transformer,
        scheduler=AmusedScheduler(mask_token_id=31),
    )


def builders() -> dict[str, Callable[[], LibraryObject]]:
    """What makes each class's pipeline."""
    return {
        "AmusedPipeline": _amused,
        "IFPipeline": _deep_floyd,
        "Kandinsky3Pipeline": _kandinsky3,
        "LDMTextToImagePipeline": _latent_diffusion,
    }
