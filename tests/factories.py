"""Factories for requests, generation infos and images, with overridable fields."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from t2i_cli.backend import GeneratedImage
from t2i_cli.batch import contact_sheet, gallery
from t2i_cli.batch.local_folder import LocalFolder
from t2i_cli.batch.plan import BatchPlan
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest

REQUEST = ResolvedRequest(
    prompt="A red house, on green hills",
    negative_prompt="rain",
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    revision="main",
    seed=42,
    steps=30,
    guidance_scale=7.5,
    width=64,
    height=48,
    scheduler="dpm++2m-karras",
)
LOCK = GenerationInfo(
    backend="local",
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    pipeline="StableDiffusionPipeline",
    scheduler="DPMSolverMultistepScheduler",
    device="cuda:0",
    dtype="float16",
    batch_size=1,
    measures=("vae_tiling",),
    libraries={"diffusers": "0.42.1", "torch": "2.13.0"},
)


def request(**changes: object) -> ResolvedRequest:
    """A settled request."""
    return replace(REQUEST, **changes)  # type: ignore[arg-type]


def picture(width: int = 64, height: int = 48) -> Image.Image:
    """A picture whose halves tell its orientation: red above blue."""
    image = Image.new("RGB", (width, height), (200, 30, 30))
    image.paste((30, 60, 200), (0, height // 2, width, height))
    return image


def generated(index: int = 0, **changes: object) -> GeneratedImage:
    """A finished image of 64 by 48 pixels, with changes to its request."""
    return GeneratedImage(
        index=index, request=request(**changes), image=picture(), info=LOCK, seconds=1.25
    )


def written_gallery(folder: Path, scratch: Path) -> Path:
    """Write the gallery of a folder on this disk; its path."""
    return folder / gallery.write_gallery(LocalFolder(folder, scratch))


def written_sheet(plan: BatchPlan, scratch: Path) -> Path:
    """Write the sheet of a plan whose folder is on this disk; its path."""
    folder = Path(plan.folder.location())
    return folder / contact_sheet.write_sheet(replace(plan, folder=LocalFolder(folder, scratch)))
