"""Notes of a batch, grouped by their text: one line for all images that they are about."""

from collections.abc import Iterator

_MAX_LINES = 5
"""Largest number of lines of the prompts file that a note lists."""
_MAX_GROUPS = 20
"""Largest number of notes that are printed; the manifest has all of them."""


class NoteGroups:
    """Counts the images of each note, with their lines in the prompts file."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[str, int]] = {}

    def add(self, message: str, row_id: str, line: int) -> None:
        """Add a note on a row's image; once for each row."""
        self._lines.setdefault(message, {})[row_id] = line

    def to_json(self) -> list[dict[str, object]]:
        """The notes with the number of their images and the lines, as `--json` prints them."""
        return [
            {"message": message, "images": len(rows), "lines": sorted(set(rows.values()))}
            for message, rows in self._lines.items()
        ]

    def texts(self) -> Iterator[str]:
        """The notes for people, the first of them only if there are many."""
        for message, rows in list(self._lines.items())[:_MAX_GROUPS]:
            lines = sorted(set(rows.values()))
            if len(rows) == 1:
                yield f"line {lines[0]}: {message}"
                continue
            listed = ", ".join(map(str, lines[:_MAX_LINES])) + ", …" * (len(lines) > _MAX_LINES)
            yield f"{message} ({len(rows):,} images: line{'s' * (len(lines) > 1)} {listed})"
        if (more := len(self._lines) - _MAX_GROUPS) > 0:
            yield f"{more:,} more notes are in the manifest."
