"""Tiny pipelines of a prior and a decoder, with random weights: Kandinsky 2, Stable unCLIP.

Shapes follow diffusers' own fast tests. On the Hub, prior and decoder are two repositories.
"""

from collections.abc import Callable

from t2i_cli.models.libraries import LibraryObject
from tests.tiny_models import clip, clip_tokenizer, t5_tokenizer
from tests.tiny_older_families import quantised_vae


def _image_encoder() -> LibraryObject:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=4,
        projection_dim=32,
        image_size=32,
        patch_size=8,
    )
    return CLIPVisionModelWithProjection(config)


def _image_processor() -> LibraryObject:
    from transformers import CLIPImageProcessorPil

    side = {"height": 32, "width": 32}
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side)


def _prior(**more: object) -> LibraryObject:
    from diffusers import PriorTransformer

    prior: LibraryObject = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=12,
        embedding_dim=32,
        num_layers=1,
        num_embeddings=clip_tokenizer().model_max_length,
        **more,
    )
    # The published weights have statistics of CLIP's embeddings there; zeros would hide all.
    prior.clip_std.data.fill_(1.0)
    return prior


def _prior_parts() -> dict[str, object]:
    from diffusers import UnCLIPScheduler

    return {
        "prior_prior": _prior(),
        "prior_image_encoder": _image_encoder(),
        "prior_text_encoder": clip("CLIPTextModelWithProjection"),
        "prior_tokenizer": clip_tokenizer(),
        "prior_scheduler": UnCLIPScheduler(
            variance_type="fixed_small_log",
            prediction_type="sample",
            num_train_timesteps=1000,
            clip_sample_range=10.0,
        ),
        "prior_image_processor": _image_processor(),
    }


def _kandinsky_unet(**more: object) -> LibraryObject:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        encoder_hid_dim=32,
        **more,
    )


def _kandinsky_decoder() -> dict[str, object]:
    from diffusers import DDIMScheduler

    return {
        "scheduler": DDIMScheduler(
            beta_schedule="linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="epsilon",
            thresholding=False,
        ),
        "movq": quantised_vae(
            *(32, 64), latent_channels=4, num_vq_embeddings=12, vq_embed_dim=4, norm_type="spatial"
        ),
    }


def _kandinsky() -> LibraryObject:
    from diffusers import KandinskyCombinedPipeline
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    config: LibraryObject = MCLIPConfig(
        numDims=32,
        transformerDimensions=32,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=64,
        max_position_embeddings=600,
        pad_token_id=0,
    )
    tokenizer = t5_tokenizer()
    tokenizer.model_max_length = 77
    unet = _kandinsky_unet(
        addition_embed_type="text_image",
        addition_embed_type_num_heads=2,
        encoder_hid_dim_type="text_image_proj",
    )
    return KandinskyCombinedPipeline(
        text_encoder=MultilingualCLIP(config).eval(),
        tokenizer=tokenizer,
        unet=unet,
        **_kandinsky_decoder(),
        **_prior_parts(),
    )


def _kandinsky22() -> LibraryObject:
    from diffusers import KandinskyV22CombinedPipeline

    unet = _kandinsky_unet(addition_embed_type="image", encoder_hid_dim_type="image_proj")
    return KandinskyV22CombinedPipeline(unet=unet, **_kandinsky_decoder(), **_prior_parts())


def _unclip() -> LibraryObject:
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        StableUnCLIPPipeline,
        UNet2DConditionModel,
    )
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    from tests.tiny_models import vae

    unet = UNet2DConditionModel(
        sample_size=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        attention_head_dim=(2, 4),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=64,
        cross_attention_dim=32,
        layers_per_block=1,
        upcast_attention=True,
        use_linear_projection=True,
    )
    return StableUnCLIPPipeline(
        prior_tokenizer=clip_tokenizer(),
        prior_text_encoder=clip("CLIPTextModelWithProjection"),
        prior=_prior(),
        prior_scheduler=DDPMScheduler(
            variance_type="fixed_small_log",
            prediction_type="sample",
            num_train_timesteps=1000,
            clip_sample=True,
            clip_sample_range=5.0,
            beta_schedule="squaredcos_cap_v2",
        ),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=32),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=clip_tokenizer(),
        text_encoder=clip("CLIPTextModel"),
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        vae=vae(4),
    )


def builders() -> dict[str, Callable[[], LibraryObject]]:
    """What makes each class's pipeline."""
    return {
        "KandinskyCombinedPipeline": _kandinsky,
        "KandinskyV22CombinedPipeline": _kandinsky22,
        "StableUnCLIPPipeline": _unclip,
    }
