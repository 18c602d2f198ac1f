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
    # transformers loads as float32 what diffusers loads so only if told.
    _edit(fresh / "text_encoder" / "config.json", {"dtype": "float32"})
    for name, config in (("unet", "config"), ("vae", "config"), ("tokenizer", "tokenizer_config")):
        _edit(fresh / name / f"{config}.json", {})
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


def _edit(config: Path, settings: dict[str, str]) -> None:
    """Add settings, and drop where the part was loaded from."""
    kept = json.loads(config.read_text(encoding="utf-8")) | settings
    for key in ("_name_or_path", "is_local", "local_files_only"):
        kept.pop(key, None)
    config.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
