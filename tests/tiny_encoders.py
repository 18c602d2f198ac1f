"""Tiny diffusion transformers whose text encoders are CLIP's and T5's, with random weights."""

from t2i_cli.models.libraries import LibraryObject
from tests.tiny_models import clip, clip_tokenizer, t5, t5_tokenizer, vae


def _flow(**more: object) -> LibraryObject:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**more)


def hunyuan_dit() -> LibraryObject:
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
    from transformers import BertConfig, BertModel

    transformer = HunyuanDiT2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        hidden_size=24,
        activation_fn="gelu-approximate",
        text_len=77,
        text_len_t5=256,
    )
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=37,
    )
    return HunyuanDiTPipeline(
        vae=vae(4, stages=4),
        text_encoder=BertModel(config).eval(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
        scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )


def aura_flow() -> LibraryObject:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel
    from transformers import UMT5Config, UMT5EncoderModel

    transformer = AuraFlowTransformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=1024,
    )
    config = UMT5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    return AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=UMT5EncoderModel(config).eval(),
        vae=vae(4),
        transformer=transformer,
        scheduler=_flow(),
    )


def chroma() -> LibraryObject:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    transformer = ChromaTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return ChromaPipeline(
        scheduler=_flow(),
        vae=vae(1),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
    )


def bria() -> LibraryObject:
    from diffusers import BriaPipeline, BriaTransformer2DModel

    transformer = BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[0, 4, 4],
    )
    return BriaPipeline(
        transformer=transformer,
        scheduler=_flow(),
        vae=vae(4),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )


def hidream() -> LibraryObject:
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel
    from transformers import LlamaConfig, LlamaForCausalLM

    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 16],
        text_emb_dim=64,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
    )
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    encoder = "CLIPTextModelWithProjection"
    return HiDreamImagePipeline(
        scheduler=_flow(),
        vae=vae(4),
        text_encoder=clip(encoder, positions=248),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(encoder, positions=248),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=LlamaForCausalLM(config).eval(),
        tokenizer_4=t5_tokenizer(),
        transformer=transformer,
    )


def pixart(cls: str = "PixArtAlphaPipeline", layers: int = 1) -> LibraryObject:
    import diffusers
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        sample_size=32,
        num_layers=layers,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        caption_channels=32,
        use_additional_conditions=False,
    )
    return getattr(diffusers, cls)(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(4, stages=4),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )
