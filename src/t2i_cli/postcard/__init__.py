"""The bundled demonstration model: its folder and the words it was trained on."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "model"


@cache
def words() -> frozenset[str]:
    """Every word that the model was trained on, in lower case."""
    return frozenset((FOLDER.parent / "words.txt").read_text(encoding="utf-8").split())
