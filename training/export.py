"""Writes the trained parts as a standard StableDiffusionPipeline folder, in half precision."""

import json
import shutil
from pathlib import Path
from typing import Final

from transformers import CLIPTextModel, CLIPTokenizer

from training.diffusion import SCHEDULE
from training.files import MODEL, WORDS
from training.tokenizer import caption_words
from training.untyped import DPMSolverMultistepScheduler, StableDiffusionPipeline, Untyped

MAX_BYTES: Final = 16 * 10**6


def export(
    vae: Untyped,
    text_encoder: CLIPTextModel,
    unet: Untyped,
    tokenizer: CLIPTokenizer,
    card: str,
    folder: Path = MODEL,
) -> None:
    """Replace the model folder as a whole; raises ValueError if it came out too large."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (vae, text_encoder, unet):
        part.half()
    fresh = folder.with_name("model.new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh, safe_serialization=True)
    _load_as_float32(fresh / "text_encoder" / "config.json")
    (fresh / "README.md").write_text(card, encoding="utf-8")
    for path in fresh.rglob("*.safetensors"):
        path.chmod(0o644)  # written through a private temporary file
    size = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise ValueError(f"the model has {size} bytes, more than {MAX_BYTES}")
    old = folder.with_name("model.old")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    WORDS.write_text("\n".join(sorted(w for w in caption_words() if w.isalpha())) + "\n", "utf-8")


def _load_as_float32(config: Path) -> None:
    """Make transformers load what diffusers loads as float32 as float32, too."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["dtype"] = "float32"
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
