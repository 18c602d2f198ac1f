"""Tiny pipelines whose text encoder is a language model, with random weights.

Shapes follow diffusers' own fast tests; the tokenizer is tiny.t5_tokenizer with a chat template.
"""

from t2i_cli.models.libraries import LibraryObject
from tests.tiny_models import t5_tokenizer, vae

_CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
_SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def chat_tokenizer(side: str = "right", length: int = 512) -> LibraryObject:
    tokenizer = t5_tokenizer()
    tokenizer.chat_template = _CHAT
    tokenizer.padding_side = side
    tokenizer.model_max_length = length
    return tokenizer


def gemma_tokenizer() -> LibraryObject:
    """A tokenizer as Gemma's: a mark of beginning, none of the end, words with the space before."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ("red", "star", "blue", "sea")
    pieces = ["<pad>", "</s>", "<bos>", "<unk>", *"\u2581abcdefghijklmnopqrstuvwxyz0123456789.,:-"]
    merges: list[tuple[str, str]] = []
    for word in words:
        piece = "\u2581"
        for letter in word:
            merges.append((piece, letter))
            piece += letter
            pieces.append(piece)
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))  # noqa: S106
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Replace("\u2581", " ")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def language_model(cls: str, **more: object) -> LibraryObject:
    """A language model of that class; its configuration's class is named after it."""
    import transformers

    found = getattr(transformers, cls)
    return found(found.config_class(**(_SHAPE | _TOKENS | {"head_dim": 8} | more))).eval()


def qwen_vl() -> LibraryObject:
    from transformers import Qwen2_5_VLForConditionalGeneration

    configure: LibraryObject = Qwen2_5_VLForConditionalGeneration.config_class
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    config = configure(
        text_config=_SHAPE | _TOKENS | {"rope_scaling": rope, "rope_theta": 1e6},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
        image_token_id=60,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def flow_scheduler(**more: object) -> LibraryObject:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**more)


def qwen_vae() -> LibraryObject:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def qwen_image() -> LibraryObject:
    from diffusers import QwenImagePipeline, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    return QwenImagePipeline(
        scheduler=flow_scheduler(),
        vae=qwen_vae(),
        text_encoder=qwen_vl(),
        tokenizer=chat_tokenizer(),
        transformer=transformer,
    )


def longcat() -> LibraryObject:
    from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel

    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    return LongCatImagePipeline(
        scheduler=flow_scheduler(),
        vae=vae(16),
        text_encoder=qwen_vl(),
        tokenizer=chat_tokenizer(),
        text_processor=chat_tokenizer("left"),
        transformer=transformer,
    )


def cogview4() -> LibraryObject:
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel

    transformer = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=16,
    )
    return CogView4Pipeline(
        tokenizer=chat_tokenizer("left"),
        text_encoder=language_model("GlmModel"),
        vae=vae(4),
        transformer=transformer,
        scheduler=flow_scheduler(base_shift=0.25, max_shift=0.75, base_image_seq_len=256),
    )


def lumina2() -> LibraryObject:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=8,
        num_layers=2,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(512, 128, 128),
        cap_feat_dim=16,
    )
    return Lumina2Pipeline(
        transformer=transformer,
        scheduler=flow_scheduler(),
        vae=vae(4, stages=4),
        text_encoder=language_model("Gemma2Model"),
        tokenizer=chat_tokenizer(),
    )


def _sana_transformer(**more: object) -> LibraryObject:
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=32,
        **more,
    )


def deep_compression() -> LibraryObject:
    from diffusers import AutoencoderDC

    return AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
        decoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
        encoder_qkv_multiscales=((),) * 5 + ((5,),),
        decoder_qkv_multiscales=((),) * 5 + ((5,),),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        decoder_norm_types="rms_norm",
        scaling_factor=0.41407,
    )


def sana() -> LibraryObject:
    from diffusers import SanaPipeline

    return SanaPipeline(
        tokenizer=chat_tokenizer(),
        text_encoder=language_model("Gemma2Model"),
        vae=deep_compression(),
        transformer=_sana_transformer(),
        scheduler=flow_scheduler(shift=7.0),
    )


def sana_sprint() -> LibraryObject:
    from diffusers import SanaSprintPipeline, SCMScheduler

    return SanaSprintPipeline(
        tokenizer=chat_tokenizer(),
        text_encoder=language_model("Gemma2Model"),
        vae=deep_compression(),
        transformer=_sana_transformer(guidance_embeds=True, qk_norm="rms_norm_across_heads"),
        scheduler=SCMScheduler(),
    )


def z_image() -> LibraryObject:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    transformer: LibraryObject = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 128, 128],
    )
    # The network leaves these uninitialised.
    for name, token in transformer.named_parameters():
        if name.endswith("_pad_token"):
            token.data.normal_(std=0.02)
    return ZImagePipeline(
        scheduler=flow_scheduler(shift=3.0),
        vae=vae(4),
        text_encoder=language_model("Qwen3Model"),
        tokenizer=chat_tokenizer(),
        transformer=transformer,
    )


def flux2_klein(*, distilled: bool = False) -> LibraryObject:
    from diffusers import Flux2KleinPipeline

    return Flux2KleinPipeline(
        scheduler=flow_scheduler(),
        vae=flux2_vae(),
        text_encoder=language_model(
            "Qwen3ForCausalLM", num_hidden_layers=28, hidden_size=8, head_dim=4
        ),
        tokenizer=chat_tokenizer(),
        transformer=flux2_transformer(24, guidance_embeds=False),
        is_distilled=distilled,
    )


def flux2_transformer(joint: int, **more: object) -> LibraryObject:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=joint,
        timestep_guidance_channels=256,
        axes_dims_rope=(4, 4, 4, 4),
        **more,
    )


def flux2_vae() -> LibraryObject:
    from diffusers import AutoencoderKLFlux2

    return AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )
