"""Tiny pipelines of several families with random weights, saved as diffusers folders.

Shapes follow diffusers' own fast tests; tokenizers are postcard's, or made here.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from t2i_cli import postcard
from t2i_cli.models.libraries import LibraryObject


def save(family: str, folder: Path) -> Path:
    """Save the tiny pipeline of a family to a new folder."""
    return save_pipeline(families()[family], folder)


def save_pipeline(build: Callable[[], LibraryObject], folder: Path) -> Path:
    """Save what a builder makes, enlivened, to a new folder."""
    import torch

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = build()
        _enliven(pipe)
        pipe.save_pretrained(folder)
    return folder


def without_constructor(cls: LibraryObject, **parts: object) -> LibraryObject:
    """A pipeline of components whose class cannot be constructed here, to be saved."""
    from diffusers import DiffusionPipeline

    pipe = cls.__new__(cls)
    DiffusionPipeline.__init__(pipe)
    pipe.register_modules(**parts)
    return pipe


def _enliven(pipe: LibraryObject) -> None:
    """Give networks weights with which the prompt shows in the picture: usual ones are small."""
    import torch

    for name, module in pipe.components.items():
        if not isinstance(module, torch.nn.Module) or name == "vae":
            continue
        for part in module.modules():
            if isinstance(part, torch.nn.Embedding):
                part.weight.data.normal_()
            elif isinstance(part, torch.nn.Linear):
                part.weight.data.normal_(std=1.2 * part.in_features**-0.5)


def copy_postcard(folder: Path) -> Path:
    """A copy of the embedded model that a test may change."""
    shutil.copytree(postcard.FOLDER, folder)
    return folder


def edit_json(file: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensor(file: Path, name: str, value: float) -> None:
    """Fill one tensor of a safetensors file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    tensors[name].fill_(value)
    save_file(tensors, file, metadata={"format": "pt"})


def add_safety_checker(folder: Path) -> None:
    """Give a Stable Diffusion folder a real safety checker with random weights."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 4, "projection_dim": 32}
    vision = tower | {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=tower, vision_config=vision, projection_dim=32)
    StableDiffusionSafetyChecker(config).save_pretrained(folder / "safety_checker")
    side = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side)
    processor.save_pretrained(folder / "feature_extractor")
    edit_json(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
    )


def clip_tokenizer() -> LibraryObject:
    """The tokenizer of postcard, of CLIP's kind."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(postcard.FOLDER / "tokenizer")


def clip(cls: str, positions: int | None = None) -> LibraryObject:
    import transformers

    tokenizer = clip_tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=positions or tokenizer.model_max_length,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
    )
    return getattr(transformers, cls)(config)


def t5_tokenizer() -> LibraryObject:
    """A tokenizer as T5's: a token a letter, no start, an end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,-"
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {letter: number for number, letter in enumerate(letters, 3)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        model_max_length=512,
    )


def t5() -> LibraryObject:
    from transformers import T5Config, T5EncoderModel

    # Rows of whole vectors: others are added up in an order that depends on where weights lie.
    return T5EncoderModel(
        T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    )


def vae(latent_channels: int, stages: int = 2) -> LibraryObject:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8, 16, 16, 16][:stages],
        down_block_types=["DownEncoderBlock2D"] * stages,
        up_block_types=["UpDecoderBlock2D"] * stages,
        latent_channels=latent_channels,
        norm_num_groups=8,
        shift_factor=0.06,
        scaling_factor=1.5,
    )


def _sdxl() -> LibraryObject:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + 32,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    return StableDiffusionXLPipeline(
        vae=vae(4),
        text_encoder=clip("CLIPTextModel"),
        text_encoder_2=clip("CLIPTextModelWithProjection"),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def _lcm() -> LibraryObject:
    from diffusers import (
        LatentConsistencyModelPipeline,
        LCMScheduler,
        UNet2DConditionModel,
    )

    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=2,
        time_cond_proj_dim=32,
    )
    return LatentConsistencyModelPipeline(
        vae=vae(4),
        text_encoder=clip("CLIPTextModel"),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=LCMScheduler(beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_3(layers: int = 1) -> LibraryObject:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
    )
    encoder = "CLIPTextModelWithProjection"
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4),
        text_encoder=clip(encoder),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(encoder),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _flux(cls: str = "FluxPipeline") -> LibraryObject:
    import diffusers
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return getattr(diffusers, cls)(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(1),
        text_encoder=clip("CLIPTextModel"),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def _flux_3072() -> LibraryObject:
    """FLUX.1's own width, which diffusers fixes where it reads single files; one block of each."""
    import torch
    from diffusers import FluxTransformer2DModel

    pipe = _flux()
    transformer: LibraryObject = FluxTransformer2DModel
    # 24 heads of 128 numbers, 64 channels of packed latents: the public configuration's.
    vae_channels = 16
    pipe.register_modules(
        vae=vae(vae_channels),
        transformer=transformer(
            in_channels=4 * vae_channels,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(16, 56, 56),
            guidance_embeds=True,
        ).to(torch.bfloat16),
    )
    return pipe


def families() -> dict[str, Callable[[], LibraryObject]]:
    """What makes each family's pipeline."""
    from tests import tiny_encoders as encoders
    from tests import tiny_language as language

    return {
        "sdxl": _sdxl,
        "sd3": stable_diffusion_3,
        "flux": _flux,
        "flux-3072": _flux_3072,
        "pixart": encoders.pixart,
        "pixart-sigma": partial(encoders.pixart, "PixArtSigmaPipeline"),
        "hunyuan-dit": encoders.hunyuan_dit,
        "aura-flow": encoders.aura_flow,
        "chroma": encoders.chroma,
        "bria": encoders.bria,
        "flux-kontext": partial(_flux, "FluxKontextPipeline"),
        "hidream": encoders.hidream,
        "lcm": _lcm,
        "qwen-image": language.qwen_image,
        "longcat": language.longcat,
        "cogview4": language.cogview4,
        "lumina2": language.lumina2,
        "sana": language.sana,
        "sana-sprint": language.sana_sprint,
        "z-image": language.z_image,
        "flux2-klein": language.flux2_klein,
        "flux2-klein-distilled": partial(language.flux2_klein, distilled=True),
    }
