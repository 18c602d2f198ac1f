"""Tiny pipelines that edit images as well: DreamLite, FLUX.2, GLM-Image, Z-Image-Omni.

Shapes follow diffusers' own fast tests; random weights.
"""

from collections.abc import Callable

from t2i_cli.models.libraries import LibraryObject
from tests.tiny_language import (
    chat_tokenizer,
    flow_scheduler,
    flux2_transformer,
    flux2_vae,
    language_model,
)
from tests.tiny_models import t5, t5_tokenizer, vae
from tests.tiny_vision_language import QWEN3_TEXT, qwen3_vl


def _dreamlite(cls: str = "DreamLitePipeline") -> LibraryObject:
    import diffusers
    from diffusers import AutoencoderTiny, DreamLiteUNetModel

    unet = DreamLiteUNetModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        norm_num_groups=8,
        attention_head_dim=8,
    )
    decoder: LibraryObject = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    decoder.decoder.layers[-1].weight.data.mul_(20)  # its usual weights make a picture of one grey
    return getattr(diffusers, cls)(
        text_encoder=qwen3_vl(),
        tokenizer=chat_tokenizer(),
        processor=chat_tokenizer(),
        vae=decoder,
        unet=unet,
        scheduler=flow_scheduler(),
    )


def _dreamlite_mobile() -> LibraryObject:
    return _dreamlite("DreamLiteMobilePipeline")


def _z_image_omni() -> LibraryObject:
    from diffusers import ZImageOmniPipeline, ZImageTransformer2DModel
    from transformers import (
        Siglip2ImageProcessorPil,
        Siglip2VisionConfig,
        Siglip2VisionModel,
    )

    transformer: LibraryObject = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        siglip_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 128, 128],
    )
    for name, token in transformer.named_parameters():
        if name.endswith("_pad_token"):
            token.data.normal_(std=0.02)
    vision = Siglip2VisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return ZImageOmniPipeline(
        scheduler=flow_scheduler(shift=3.0),
        vae=vae(4),
        text_encoder=language_model("Qwen3Model"),
        tokenizer=chat_tokenizer(),
        transformer=transformer,
        siglip=Siglip2VisionModel(vision).eval(),
        siglip_processor=Siglip2ImageProcessorPil(),
    )


def _flux2() -> LibraryObject:
    from diffusers import Flux2Pipeline

    return Flux2Pipeline(
        scheduler=flow_scheduler(),
        vae=flux2_vae(),
        text_encoder=language_model(
            "Ministral3ForCausalLM", num_hidden_layers=30, hidden_size=8, head_dim=4
        ),
        tokenizer=chat_tokenizer(),
        transformer=flux2_transformer(24, guidance_embeds=True),
    )


def _flux2_cached() -> LibraryObject:
    from diffusers import Flux2KleinKVPipeline

    return Flux2KleinKVPipeline(
        scheduler=flow_scheduler(),
        vae=flux2_vae(),
        text_encoder=language_model(
            "Qwen3ForCausalLM", num_hidden_layers=28, hidden_size=8, head_dim=4
        ),
        tokenizer=chat_tokenizer(),
        transformer=flux2_transformer(24, guidance_embeds=False),
        is_distilled=True,
    )


def _glm_image() -> LibraryObject:
    from diffusers import GlmImagePipeline, GlmImageTransformer2DModel
    from transformers import (
        GlmImageConfig,
        GlmImageForConditionalGeneration,
        GlmImageImageProcessorPil,
        GlmImageProcessor,
    )

    tokenizer = chat_tokenizer("left")
    marks = {"image_token": "<image>", "grid_bos_token": "<grid>", "grid_eos_token": "</grid>"}
    tokenizer.bos_token = "<s>"  # noqa: S105
    tokenizer._set_model_specific_special_tokens(marks)
    text = dict(QWEN3_TEXT) | {"rope_scaling": None, "vision_vocab_size": 64, "pad_token_id": 0}
    text |= {
        "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }
    config: LibraryObject = GlmImageConfig(
        text_config=text,
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "num_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "intermediate_size": 16,
        },
        vq_config={"embed_dim": 16, "num_embeddings": 64, "latent_channels": 16},
        image_token_id=tokenizer.image_token_id,
        image_start_token_id=62,
        image_end_token_id=63,
    )
    planner = GlmImageForConditionalGeneration(config).eval()
    planner.generation_config.eos_token_id = None  # random weights would end the plan early
    decoder = vae(4, stages=4)
    decoder.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    transformer = GlmImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=64,
    )
    return GlmImagePipeline(
        tokenizer=t5_tokenizer(),
        processor=GlmImageProcessor(
            image_processor=GlmImageImageProcessorPil(),
            tokenizer=tokenizer,
            chat_template=tokenizer.chat_template,
        ),
        text_encoder=t5(),
        vision_language_encoder=planner,
        vae=decoder,
        transformer=transformer,
        scheduler=flow_scheduler(),
    )


def builders() -> dict[str, Callable[[], LibraryObject]]:
    """What makes each class's pipeline."""
    return {
        "DreamLiteMobilePipeline": _dreamlite_mobile,
        "DreamLitePipeline": _dreamlite,
        "Flux2KleinKVPipeline": _flux2_cached,
        "Flux2Pipeline": _flux2,
        "GlmImagePipeline": _glm_image,
        "ZImageOmniPipeline": _z_image_omni,
    }
