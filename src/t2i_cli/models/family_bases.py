"""The models whose configs single files of a family are used with, and the family of a folder."""

from pathlib import Path

from t2i_cli.errors import InputError, ModelError
from t2i_cli.models import diffusers_folder
from t2i_cli.models.checkpoint_families import FAMILIES
from t2i_cli.models.checkpoint_file import CheckpointFile

_BASES = {
    "sd15": "sd15",
    "sd2": "stabilityai/stable-diffusion-2-1",
    "sdxl": "sdxl",
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "sd35-medium": "sd35-medium",
    "sd35-large": "stabilityai/stable-diffusion-3.5-large",
    "flux-dev": "flux-dev",
    "flux-schnell": "flux-schnell",
    "flux2-klein": "flux2-klein",
    "flux2-dev": "black-forest-labs/FLUX.2-dev",
    "flux3": "black-forest-labs/flux-3-image-klein-base",
    "flux3-distilled": "black-forest-labs/flux-3-image-klein",
    "playground-v2.5": "playgroundai/playground-v2.5-1024px-aesthetic",
    "qwen-image-2.1": "Qwen/Qwen-Image-2.1",
    "krea2": "krea/Krea-2-Raw",
    "hidream": "HiDream-ai/HiDream-I1-Dev",
    "cosmos2": "nvidia/Cosmos-Predict2-2B-Text2Image",
    "chroma": "lodestones/Chroma1-HD",
    "auraflow": "fal/AuraFlow-v0.3",
    "lumina2": "Alpha-VLLM/Lumina-Image-2.0",
    "sana": "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
    "z-image": "z-image-turbo",
    "qwen-image": "qwen-image",
}
"""Names in the catalogue, or repositories as diffusers' DIFFUSERS_DEFAULT_PIPELINE_PATHS has them.

The latter: diffusers/loaders/single_file_utils.py of diffusers 0.42.1.
"""
_FAMILIES = {
    "StableDiffusionXLPipeline": "sdxl",
    "ZImagePipeline": "z-image",
    "QwenImagePipeline": "qwen-image",
    "ChromaPipeline": "chroma",
    "AuraFlowPipeline": "auraflow",
    "Lumina2Pipeline": "lumina2",
    "SanaPipeline": "sana",
}
"""Families by their pipeline, where there is one only."""
_SD35_LARGE_LAYERS = 38
_FLUX2_HEADS = {"24": "flux2-klein", "32": "flux2-klein-9b", "48": "flux2-dev"}
"""FLUX.2's models by their heads, of 128 numbers each."""
_SD_WIDTHS = {768: "sd15", 1024: "sd2"}
"""Families of StableDiffusionPipeline by the width of the text that the UNet takes."""


def find_base(family: str | None, file: Path) -> str:
    """The name of the model whose configs a file of that family is used with.

    Raises ModelError if there is none.
    """
    name = _BASES.get(family or "")
    if name is None:
        raise ModelError(
            f"{file} is of {FAMILIES[family].title}, of which t2i knows no base model."
            if family in FAMILIES
            else f"The family of {file} cannot be told from its tensors.",
            hint="--base NAME, REPOSITORY or FOLDER gives the model whose configs it belongs to.",
        )
    return name


def family_of_folder(folder: Path) -> str | None:
    """The family of a diffusers folder by its configs, `None` if it is none of those told."""
    pipeline = diffusers_folder.pipeline_class_path(folder)[-1]
    _, config = diffusers_folder.denoiser_config(folder)
    if pipeline == "StableDiffusionPipeline":
        width = config.get("cross_attention_dim")
        return _SD_WIDTHS.get(width) if isinstance(width, int) else None
    if pipeline == "StableDiffusionXLPipeline" and _is_edm(folder):
        return "playground-v2.5"
    if pipeline in {"Flux2Pipeline", "Flux2KleinPipeline"}:
        return _FLUX2_HEADS.get(str(config.get("num_attention_heads")))
    if pipeline == "FluxPipeline":
        return "flux-dev" if config.get("guidance_embeds") else "flux-schnell"
    if pipeline == "StableDiffusion3Pipeline":
        if config.get("dual_attention_layers"):
            return "sd35-medium"
        return "sd35-large" if config.get("num_layers") == _SD35_LARGE_LAYERS else "sd3"
    return _FAMILIES.get(pipeline)


def _is_edm(folder: Path) -> bool:
    """Whether a model of SDXL's shapes has Playground's scheduler, whose noise is another."""
    scheduler = diffusers_folder.read_model_index(folder).get("scheduler")
    return isinstance(scheduler, list) and str(scheduler[-1]).startswith("EDM")


def check_family(checkpoint: CheckpointFile, folder: Path, field: str) -> None:
    """Raise InputError if a file's denoiser is of another family than a folder's model."""
    own = family_of_folder(folder)
    if checkpoint.family in FAMILIES and own and checkpoint.family != own:
        raise InputError(
            f"{checkpoint.path} is of {FAMILIES[checkpoint.family].title}, and the model that it "
            f"is to be used with of {FAMILIES[own].title}.",
            hint="Leave --base away, or name a model of that family."
            if field == "base"
            else "Name it with -m, or a model of its family beside it.",
            field=field,
        )
