"""Prompts files: text, JSONL and CSV become entries, and whatever is wrong is named by its line."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from t2i_cli.errors import InputError, os_reason
from t2i_cli.prompts import readers
from t2i_cli.prompts.entries import PromptEntry, PromptProblem

InputFormat = Literal["txt", "jsonl", "csv"]


MAX_SHOWN = 20
"""Problems printed; the others are counted."""


@dataclass(frozen=True)
class PromptsFile:
    """A prompts file as read: `name` is how messages call it."""

    name: str
    entries: Sequence[PromptEntry]
    problems: Sequence[PromptProblem]


class PromptsError(InputError):
    """Rows of a prompts file are wrong, all of them named at once.

    `skipped` says that good rows would have been made, had there been any.
    """

    def __init__(
        self, name: str, problems: Sequence[PromptProblem], *, skipped: bool = False
    ) -> None:
        lines = sorted({problem.line for problem in problems})
        shown = sorted(problems, key=lambda problem: problem.line)[:MAX_SHOWN]
        text = [f"{name} is wrong in {len(lines):,} line{'s' * (len(lines) > 1)}:"]
        text += [f"  {locate_problem(name, problem)}" for problem in shown]
        if len(problems) > len(shown):
            text.append(f"  and {len(problems) - len(shown):,} more problems")
        super().__init__(
            "\n".join(text),
            hint="Nothing was made. Correct the file"
            + ("." if skipped else ", or --skip-invalid goes on with the others."),
        )
        self._listed = [{"file": name, **asdict(problem)} for problem in shown]
        self._total = len(problems)

    def to_json(self) -> dict[str, object]:
        """The error as `--json` prints it, with the first problems and their number."""
        return super().to_json() | {"problems": self._listed, "problems_total": self._total}


def locate_problem(name: str, problem: PromptProblem) -> str:
    """A problem with its file, line and field, for people."""
    field = f"{problem.field}: " if problem.field else ""
    return f"{name}:{problem.line}: {field}{problem.message}"


def prompts_format(source: str, wanted: str | None) -> InputFormat:
    """The format of a prompts file: as wanted, as its extension says, or text on stdin."""
    if wanted is not None and wanted not in get_args(InputFormat):
        raise InputError(f"The input format {wanted!r} is unknown; use one of: txt, jsonl, csv.")
    ending = "txt" if source == "-" else Path(source).suffix[1:].lower()
    for known in get_args(InputFormat):
        if (wanted or ending) == known:
            return known  # type: ignore[no-any-return]
    raise InputError(
        f"What {source!r} holds is not clear from its name.",
        hint="--input-format says it: txt, jsonl or csv.",
    )


def read_prompts(source: str, format: InputFormat) -> PromptsFile:
    """Every row of a prompts file (`-`: standard input), and all that is wrong with them.

    Raises InputError if the file cannot be read at all.
    """
    if source == "-":
        return _parse("standard input", sys.stdin.buffer, format)
    try:
        with open(source, "rb") as file:
            return _parse(source, file, format)
    except OSError as error:
        raise InputError(f"Cannot read {source!r}: {os_reason(error)}.") from error


def _parse(name: str, file: BinaryIO, format: InputFormat) -> PromptsFile:
    reader = {"txt": readers.read_text, "jsonl": readers.read_jsonl, "csv": readers.read_csv}[
        format
    ]
    entries: list[PromptEntry] = []
    problems: list[PromptProblem] = []
    for found in reader(file):
        if isinstance(found, PromptEntry):
            entries.append(found)
        else:
            problems.append(found)
    if not entries and not problems:
        raise InputError(f"There is no prompt in {name}.")
    return PromptsFile(name=name, entries=entries, problems=problems)
