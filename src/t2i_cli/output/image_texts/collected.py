"""The texts found in an image, and what of it could not be read."""

from dataclasses import dataclass, field

MAX_TEXT_BYTES = 2**22
"""Bytes of one text or record, decompressed; characters of it once decoded."""
_MAX_TOTAL = 4 * MAX_TEXT_BYTES
"""Characters of all texts of a file."""
_MAX_PROBLEMS = 20


@dataclass(kw_only=True)
class ImageTexts:
    """The texts of an image with their names there, and sentences on what could not be read.

    `width` and `height` are in pixels; 0 where the file does not say.
    """

    format: str
    width: int = 0
    height: int = 0
    texts: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _size: int = 0

    def add_text(self, name: str, text: str) -> None:
        """Add a text that is not blank, within the bound on all texts together."""
        if not text.strip():
            return
        self._size += len(text)
        if self._size > _MAX_TOTAL:
            self.add_problem(f"it has more than {_MAX_TOTAL // 2**20} MiB of text in all")
        else:
            self.texts.append((name, text))

    def add_problem(self, sentence: str) -> None:
        """Add a sentence on what could not be read, once."""
        if sentence not in self.problems and len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(sentence)

    def add_too_large(self, part: str) -> None:
        """Say that a part is larger than what is read."""
        self.add_problem(f"its {part} has more than {MAX_TEXT_BYTES // 2**20} MiB and is not read")

    def find_text(self, name: str) -> str | None:
        """The first text of that name, or `None`."""
        return next((text for found, text in self.texts if found == name), None)
