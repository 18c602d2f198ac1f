"""Tiny PRX pipelines, of latents and of pixels, with random weights.

Shapes follow diffusers' own fast tests.
"""

from collections.abc import Callable

from t2i_cli.models.libraries import LibraryObject
from tests.tiny_language import chat_tokenizer, flow_scheduler, language_model
from tests.tiny_models import vae


def _prx_network(**more: object) -> LibraryObject:
    from diffusers.models.transformers.transformer_prx import PRXTransformer2DModel

    shape: dict[str, object] = {
        "in_channels": 4,
        "patch_size": 1,
        "context_in_dim": 16,
        "hidden_size": 8,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "axes_dim": [2, 2],
    }
    return PRXTransformer2DModel(**(shape | more))


def _gemma_encoder() -> LibraryObject:
    from transformers import T5GemmaConfig, T5GemmaEncoderModel, T5GemmaModuleConfig

    shape: dict[str, LibraryObject] = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "layer_types": ["full_attention"] * 2,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    side: LibraryObject = T5GemmaModuleConfig(**shape)
    config: LibraryObject = T5GemmaConfig(
        encoder=side, decoder=side, is_encoder_decoder=False, vocab_size=64
    )
    return T5GemmaEncoderModel(config).eval()


def _prx() -> LibraryObject:
    from diffusers import PRXPipeline

    return PRXPipeline(
        transformer=_prx_network(),
        scheduler=flow_scheduler(),
        text_encoder=_gemma_encoder(),
        tokenizer=chat_tokenizer(length=64),
        vae=vae(4),
        default_sample_size=64,
    )


def _prx_pixel() -> LibraryObject:
    from diffusers import PRXPixelPipeline

    network = _prx_network(in_channels=3, patch_size=8, bottleneck_size=8, resolution_embeds=True)
    return PRXPixelPipeline(
        transformer=network,
        scheduler=flow_scheduler(),
        text_encoder=language_model("Qwen3Model"),
        tokenizer=chat_tokenizer(),
        default_sample_size=64,
    )


def builders() -> dict[str, Callable[[], LibraryObject]]:
    """What makes each class's pipeline."""
    return {"PRXPipeline": _prx, "PRXPixelPipeline": _prx_pixel}
