"""Models to measure a card with: public configurations, or tiny ones, with random weights.

Nothing is downloaded: configurations are written here, tokenizers are made here. Networks are made
on the device itself, where random numbers for 12 billion weights take seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import models
from t2i_cli.models.libraries import LibraryObject, suppress_warnings


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """One model: what is asked of it, and the seconds an image to reach on an H200.

    `guidance` is the scale of a distilled model, which its pipeline takes for another one; `batch`
    is the number of images of the batched side, 0 for none; `free_gib` is what is free on the card
    of a user with a smaller one; `seconds` is what measuring it takes at most on an H200, by which
    a budget decides; `tiny` is its family in tests/tiny_models.
    """

    name: str
    steps: int
    side: int
    dtype: str
    batch: int
    seconds: float
    tiny: str
    alone: float
    batched: float | None = None
    step_cache: float | None = None
    quantizations: tuple[str, ...] = ()
    free_gib: int | None = None
    guidance: float | None = None


MODELS = (
    MeasuredModel(
        name="sd15",
        steps=30,
        side=512,
        dtype="float16",
        batch=48,
        seconds=60,
        tiny="sd",
        alone=0.30,
        batched=0.12,
    ),
    MeasuredModel(
        name="sdxl",
        steps=30,
        side=1024,
        dtype="float16",
        batch=16,
        seconds=110,
        tiny="sdxl",
        alone=1.40,
        batched=1.10,
        free_gib=8,
    ),
    MeasuredModel(
        name="klein",
        steps=4,
        side=1024,
        dtype="bfloat16",
        batch=16,
        seconds=70,
        tiny="flux2-klein-distilled",
        alone=0.32,
        batched=0.28,
    ),
    MeasuredModel(
        name="z-image",
        steps=9,
        side=1024,
        dtype="bfloat16",
        batch=0,
        seconds=80,
        tiny="z-image",
        alone=0.75,
        guidance=0.0,
    ),
    MeasuredModel(
        name="flux-dev",
        steps=28,
        side=1024,
        dtype="bfloat16",
        batch=0,
        seconds=140,
        tiny="flux",
        alone=3.7,
        step_cache=2.4,
        quantizations=("int8", "fp8-storage", "fp8"),
        free_gib=16,
    ),
)


def build(model: MeasuredModel, folder: Path, device: str, *, tiny: bool) -> Path:
    """Save the model with random weights to a new folder, and return it."""
    import torch

    if tiny:
        from tests import tiny_models

        if model.tiny == "sd":
            return tiny_models.copy_postcard(folder)
        return tiny_models.save(model.tiny, folder)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, model.dtype))
    try:
        with suppress_warnings():
            pipe = _BUILDERS[model.name](torch.device(device))
            # A buffer may have been made in float32 all the same.
            pipe.to(getattr(torch, model.dtype)).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    return folder


def _sd15(device: LibraryObject) -> LibraryObject:
    return models.random_pipeline("sd15", device)


def _sdxl(device: LibraryObject) -> LibraryObject:
    return models.random_pipeline("sdxl", device)


def _klein(device: LibraryObject) -> LibraryObject:
    """black-forest-labs/FLUX.2-klein-4B, from the configs of its repository."""
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
    from transformers import Qwen3ForCausalLM

    with device:
        transformer = Flux2Transformer2DModel(
            num_layers=5,
            num_single_layers=20,
            num_attention_heads=24,
            joint_attention_dim=7680,
            guidance_embeds=False,
        )
        vae = AutoencoderKLFlux2()
        encoder = Qwen3ForCausalLM(_qwen3_config())
    return Flux2KleinPipeline(
        scheduler=_flow(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=encoder,
        tokenizer=_chat_tokenizer(),
        transformer=transformer,
        is_distilled=True,
    )


def _z_image(device: LibraryObject) -> LibraryObject:
    """Tongyi-MAI/Z-Image-Turbo, from the configs of its repository."""
    from diffusers import ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Model

    with device:
        transformer: LibraryObject = ZImageTransformer2DModel(axes_lens=[1536, 512, 512])
        vae = _flux_vae()
        encoder = Qwen3Model(_qwen3_config())
    # The network leaves these uninitialised.
    for name, token in transformer.named_parameters():
        if name.endswith("_pad_token"):
            token.data.normal_(std=0.02)
    return ZImagePipeline(
        scheduler=_flow(shift=3.0),
        vae=vae,
        text_encoder=encoder,
        tokenizer=_chat_tokenizer(),
        transformer=transformer,
    )


def _flux_dev(device: LibraryObject) -> LibraryObject:
    """black-forest-labs/FLUX.1-dev, from the configs of its repository."""
    from diffusers import FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    from tests.tiny_models import t5_tokenizer

    clip = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        hidden_act="quick_gelu",
    )
    t5 = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    with device:
        transformer = FluxTransformer2DModel(guidance_embeds=True)
        vae = _flux_vae()
        first, second = CLIPTextModel(clip), T5EncoderModel(t5)
    return FluxPipeline(
        scheduler=_flow(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=first,
        tokenizer=models.clip_tokenizer(),
        text_encoder_2=second,
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


_BUILDERS: dict[str, Callable[[LibraryObject], LibraryObject]] = {
    "sd15": _sd15,
    "sdxl": _sdxl,
    "klein": _klein,
    "z-image": _z_image,
    "flux-dev": _flux_dev,
}


def _qwen3_config() -> LibraryObject:
    """Qwen3-4B, the text encoder of both."""
    from transformers import Qwen3Config

    return Qwen3Config(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )


def _flux_vae() -> LibraryObject:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=1024,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _chat_tokenizer() -> LibraryObject:
    """A token a letter, with a chat template: the words differ, and so does not the work."""
    from tests.tiny_models import t5_tokenizer

    tokenizer = t5_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    )
    return tokenizer


def _flow(**more: object) -> LibraryObject:
    """The scheduler is made on the CPU: on a device its tables would have to come back."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**more)
