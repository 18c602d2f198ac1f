"""Tiny pipelines whose text encoder also sees: Qwen-VL's, Mistral's and GLM's, random weights.

Shapes follow diffusers' own fast tests. Where a pipeline reads the processor's text only, a
tokenizer stands for the processor: transformers' own want torchvision.
"""

from collections.abc import Callable

from t2i_cli.models.libraries import LibraryObject
from tests.tiny_language import (
    chat_tokenizer,
    flow_scheduler,
    flux2_vae,
    qwen_vae,
    qwen_vl,
)
from tests.tiny_models import clip, clip_tokenizer, t5, t5_tokenizer, vae, without_constructor

QWEN3_TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
}


def qwen3_vl(cls: str = "Qwen3VLForConditionalGeneration", **more: object) -> LibraryObject:
    import transformers

    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    }
    config: LibraryObject = transformers.Qwen3VLConfig(
        text_config=QWEN3_TEXT | more,
        vision_config=vision,
        image_token_id=60,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
    )
    return getattr(transformers, cls)(config).eval()


def _kandinsky5() -> LibraryObject:
    from diffusers import Kandinsky5T2IPipeline, Kandinsky5Transformer3DModel

    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=32,
        time_dim=16,
        out_visual_dim=4,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(2, 2, 4),
        visual_cond=False,
        attention_type="regular",
    )
    return Kandinsky5T2IPipeline(
        transformer=transformer,
        vae=vae(4, stages=4),
        text_encoder=qwen_vl(),
        tokenizer=chat_tokenizer(),
        text_encoder_2=clip("CLIPTextModel", positions=77),
        tokenizer_2=clip_tokenizer(),
        scheduler=flow_scheduler(),
    )


def _hunyuan_image() -> LibraryObject:
    from diffusers import (
        AdaptiveProjectedMixGuidance,
        AutoencoderKLHunyuanImage,
        HunyuanImagePipeline,
        HunyuanImageTransformer2DModel,
    )

    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        guidance_embeds=False,
        text_embed_dim=16,
        text_embed_2_dim=32,
        rope_axes_dim=(4, 4),
    )
    decoder = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        scaling_factor=0.476986,
        spatial_compression_ratio=8,
        sample_size=128,
    )
    return HunyuanImagePipeline(
        scheduler=flow_scheduler(shift=7.0),
        vae=decoder,
        text_encoder=qwen_vl(),
        tokenizer=chat_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
        guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
        ocr_guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
    )


def _krea2() -> LibraryObject:
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel

    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 4, 4),
    )
    return Krea2Pipeline(
        scheduler=flow_scheduler(use_dynamic_shifting=True),
        vae=qwen_vae(),
        text_encoder=qwen3_vl("Qwen3VLModel"),
        tokenizer=chat_tokenizer(),
        transformer=transformer,
        text_encoder_select_layers=(0, 1, 2),
    )


def _nucleus() -> LibraryObject:
    from diffusers import NucleusMoEImagePipeline, NucleusMoEImageTransformer2DModel

    transformer = NucleusMoEImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
        moe_enabled=False,
        capacity_factors=[8.0] * 2,
    )
    return NucleusMoEImagePipeline(
        transformer=transformer,
        scheduler=flow_scheduler(),
        vae=qwen_vae(),
        text_encoder=qwen3_vl(num_hidden_layers=8),
        processor=chat_tokenizer(),
    )


def _qwen_image_21() -> LibraryObject:
    from diffusers import (
        AutoencoderKLQwenImage21,
        QwenImage21Pipeline,
        QwenImage21Transformer2DModel,
    )

    transformer = QwenImage21Transformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    decoder = AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    # The constructor wants a processor, which wants torchvision.
    return without_constructor(
        QwenImage21Pipeline,
        scheduler=flow_scheduler(),
        vae=decoder,
        text_encoder=qwen3_vl(),
        processor=chat_tokenizer(),
        transformer=transformer,
    )


def _bria_fibo2() -> LibraryObject:
    from diffusers import BriaFibo2Pipeline, BriaFibo2Transformer2DModel

    transformer = BriaFibo2Transformer2DModel(
        in_channels=4,
        patch_size=2,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=48,
        injection_layer_ids=(0, 0, 0, 1, 1),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=4,
        gist_max_text_len=64,
        axes_dims=(8, 4, 4),
        axes_lens=(2048, 512, 512),
    )
    return BriaFibo2Pipeline(
        transformer=transformer,
        scheduler=flow_scheduler(),
        vae=flux2_vae(),
        text_encoder=qwen3_vl(num_hidden_layers=36),
        processor=chat_tokenizer(),
    )


def _ideogram4() -> LibraryObject:
    from diffusers import Ideogram4Pipeline, Ideogram4Transformer2DModel

    def network() -> LibraryObject:
        return Ideogram4Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            intermediate_size=32,
            adaln_dim=16,
            llm_features_dim=16 * 13,
            mrope_section=(4, 2, 2),
        )

    return Ideogram4Pipeline(
        scheduler=flow_scheduler(),
        vae=flux2_vae(),
        text_encoder=qwen3_vl("Qwen3VLModel", num_hidden_layers=36),
        tokenizer=chat_tokenizer(),
        transformer=network(),
        unconditional_transformer=network(),
    )


def builders() -> dict[str, Callable[[], LibraryObject]]:
    """What makes each class's pipeline."""
    return {
        "BriaFibo2Pipeline": _bria_fibo2,
        "HunyuanImagePipeline": _hunyuan_image,
        "Ideogram4Pipeline": _ideogram4,
        "Kandinsky5T2IPipeline": _kandinsky5,
        "Krea2Pipeline": _krea2,
        "NucleusMoEImagePipeline": _nucleus,
        "QwenImage21Pipeline": _qwen_image_21,
    }
