"""Checkpoints that are whole or not there, and the places of what training makes."""

import os
from pathlib import Path
from typing import Any, Final

import torch

ROOT: Final = Path(__file__).parent.parent
RUNS: Final = ROOT / "training" / "runs"
MODEL: Final = ROOT / "src" / "t2i_cli" / "postcard" / "model"
WORDS: Final = ROOT / "src" / "t2i_cli" / "postcard" / "words.txt"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; a crash leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """A checkpoint's state, if there is one."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
