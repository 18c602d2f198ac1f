"""Tiny diffusion transformers with T5's, Gemma's and other text encoders, and random weights.

Shapes follow diffusers' own fast tests.
"""

from collections.abc import Callable

from t2i_cli.models.libraries import LibraryObject
from tests import tiny_encoders, tiny_language, tiny_models
from tests.tiny_language import chat_tokenizer, flow_scheduler, language_model
from tests.tiny_models import t5, t5_tokenizer, vae


def _perturbed(cls: str, plain: LibraryObject, layers: str) -> LibraryObject:
    """The pipeline with perturbed-attention guidance of the components of a plain one."""
    import diffusers

    return getattr(diffusers, cls)(**plain.components, pag_applied_layers=[layers])


def _perturbed_hunyuan_dit() -> LibraryObject:
    import diffusers

    parts = tiny_encoders.hunyuan_dit().components
    return diffusers.HunyuanDiTPAGPipeline(
        **parts, requires_safety_checker=False, pag_applied_layers=["blocks.1"]
    )


def _perturbed_pixart() -> LibraryObject:
    plain = tiny_encoders.pixart("PixArtSigmaPipeline", layers=2)
    return _perturbed("PixArtSigmaPAGPipeline", plain, "blocks.0")


def _perturbed_sana() -> LibraryObject:
    return _perturbed("SanaPAGPipeline", tiny_language.sana(), "transformer_blocks.0")


def _perturbed_sd3() -> LibraryObject:
    import diffusers

    parts = dict(tiny_models.stable_diffusion_3(layers=2).components)
    for unused in ("image_encoder", "feature_extractor"):
        parts.pop(unused, None)
    return diffusers.StableDiffusion3PAGPipeline(**parts, pag_applied_layers="blocks.0")


def _cogview3() -> LibraryObject:
    from diffusers import (
        CogVideoXDDIMScheduler,
        CogView3PlusPipeline,
        CogView3PlusTransformer2DModel,
    )

    transformer = CogView3PlusTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=64,
        sample_size=8,
    )
    return CogView3PlusPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(4),
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    )


def wan_vae(**more: object) -> LibraryObject:
    """A VAE of videos, of which a picture is one frame."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=8,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        **more,
    )


def _cosmos2() -> LibraryObject:
    from diffusers import Cosmos2TextToImagePipeline, CosmosTransformer3DModel

    transformer = CosmosTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=32,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        patch_size=(1, 2, 2),
        rope_scale=(2.0, 1.0, 1.0),
        concat_padding_mask=True,
        extra_pos_embed_type="learnable",
    )
    # The constructor wants cosmos_guardrail.
    return tiny_models.without_constructor(
        Cosmos2TextToImagePipeline,
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
        vae=wan_vae(),
        scheduler=flow_scheduler(use_karras_sigmas=True),
        safety_checker=None,
    )


def _lumina() -> LibraryObject:
    from diffusers import LuminaNextDiT2DModel, LuminaPipeline

    transformer = LuminaNextDiT2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=16,
        scaling_factor=1.0,
    )
    return LuminaPipeline(
        transformer=transformer,
        scheduler=flow_scheduler(),
        vae=vae(4, stages=4),
        text_encoder=language_model("GemmaModel"),
        tokenizer=chat_tokenizer(),
    )


def _omnigen() -> LibraryObject:
    from diffusers import OmniGenPipeline, OmniGenTransformer2DModel

    rope = {"long_factor": [1.0] * 4, "short_factor": [1.0] * 4, "type": "su"}
    transformer = OmniGenTransformer2DModel(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=1,
        in_channels=4,
        time_step_dim=4,
        pad_token_id=0,
        vocab_size=64,
        rope_scaling=rope,
    )
    # The constructor wants torchvision.
    return tiny_models.without_constructor(
        OmniGenPipeline,
        transformer=transformer,
        scheduler=flow_scheduler(invert_sigmas=True),
        vae=vae(4),
        tokenizer=chat_tokenizer(),
    )


def _ovis() -> LibraryObject:
    from diffusers import OvisImagePipeline, OvisImageTransformer2DModel

    transformer = OvisImageTransformer2DModel(
        patch_size=1,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    return OvisImagePipeline(
        scheduler=flow_scheduler(),
        vae=vae(4),
        text_encoder=language_model("Qwen3Model"),
        tokenizer=chat_tokenizer(),
        transformer=transformer,
    )


def _bria_fibo() -> LibraryObject:
    from diffusers import BriaFiboPipeline
    from diffusers.models.transformers.transformer_bria_fibo import BriaFiboTransformer2DModel

    transformer = BriaFiboTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        text_encoder_dim=16,
        axes_dims_rope=[0, 4, 4],
    )
    return BriaFiboPipeline(
        transformer=transformer,
        scheduler=flow_scheduler(),
        vae=wan_vae(
            decoder_base_dim=8,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
        ),
        text_encoder=language_model("SmolLM3ForCausalLM", vocab_size=128_001),
        tokenizer=chat_tokenizer(),
    )


def _ernie(*, enhanced: bool = True) -> LibraryObject:
    from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel

    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    rewriter = chat_tokenizer(length=16) if enhanced else None
    return ErnieImagePipeline(
        transformer=transformer,
        vae=tiny_language.flux2_vae(),
        text_encoder=language_model("Qwen3Model"),
        tokenizer=chat_tokenizer(),
        scheduler=flow_scheduler(),
        pe=language_model("Ministral3ForCausalLM") if enhanced else None,
        pe_tokenizer=rewriter,
    )


def builders() -> dict[str, Callable[[], LibraryObject]]:
    """What makes each class's pipeline."""
    return {
        "BriaFiboPipeline": _bria_fibo,
        "CogView3PlusPipeline": _cogview3,
        "Cosmos2TextToImagePipeline": _cosmos2,
        "ErnieImagePipeline": _ernie,
        "HunyuanDiTPAGPipeline": _perturbed_hunyuan_dit,
        "LuminaPipeline": _lumina,
        "OmniGenPipeline": _omnigen,
        "OvisImagePipeline": _ovis,
        "PixArtSigmaPAGPipeline": _perturbed_pixart,
        "SanaPAGPipeline": _perturbed_sana,
        "StableDiffusion3PAGPipeline": _perturbed_sd3,
    }
