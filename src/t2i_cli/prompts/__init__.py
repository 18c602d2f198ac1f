"""Reads prompts files (text, JSON, CSV): entries, and problems with their lines."""

import errno
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from t2i_cli.errors import InputError, os_reason
from t2i_cli.files.input_files import open_input
from t2i_cli.known_names import closest_name, name_choices
from t2i_cli.prompts import readers
from t2i_cli.prompts.entries import PromptEntry, PromptProblem
from t2i_cli.terminal.console import console

InputFormat = Literal["txt", "jsonl", "csv", "tsv", "json"]
INPUT_FORMATS = f"{', '.join(get_args(InputFormat)[:-1])} or {get_args(InputFormat)[-1]}"
"""The formats as text for people."""
MAX_ENTRIES = 1_000_000
"""Largest number of entries of a file: all are kept in memory."""

MAX_SHOWN = 20
"""Largest number of problems printed; the others are counted."""


@dataclass(frozen=True)
class PromptsFile:
    """The content of a prompts file; `name` is its name in messages."""

    name: str
    format: InputFormat
    entries: Sequence[PromptEntry]
    problems: Sequence[PromptProblem]


class PromptsError(InputError):
    """A prompts file has invalid lines; the message lists them.

    `skipped` says that --skip-invalid was given, and left no valid row.
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
        self._problems = [{"file": name, **asdict(problem)} for problem in shown]
        self._total = len(problems)

    def to_json(self) -> dict[str, object]:
        """The error as `--json` prints it, with the first problems and the number of all."""
        return super().to_json() | {"problems": self._problems, "problems_total": self._total}


def locate_problem(name: str, problem: PromptProblem) -> str:
    """Format a problem with its file, line and field."""
    field = f"{problem.field}: " if problem.field else ""
    return f"{name}:{problem.line}: {field}{problem.message}"


def quote_prompt(text: str) -> str:
    """The text as one word of a command line, in double quotes where the shell leaves it alone."""
    return shlex.quote(text) if set(text) & set('"\\$`!') else f'"{text}"'


def generate_instead(text: str) -> str:
    """The hint for words that stand where no prompt is taken."""
    return f"Did you mean t2i generate {quote_prompt(text)}? A prompt stands in quotes."


def check_source(source: str) -> None:
    """Raise InputError for a prompts file that is not there or cannot be examined."""
    if source == "-":
        return
    try:
        os.stat(source)
    except FileNotFoundError as error:
        raise _no_file(source) from error
    except OSError as error:
        raise InputError(f"Cannot read {source!r}: {os_reason(error)}.") from error


def prompts_format(source: str, wanted: str | None) -> InputFormat:
    """The format of a prompts file: `wanted`, by its extension, or text for standard input.

    Raises InputError if it is unknown.
    """
    if wanted is not None and wanted not in get_args(InputFormat):
        choices = name_choices(wanted, get_args(InputFormat))
        raise InputError(f"The input format {wanted!r} is unknown; {choices}")
    extension = "txt" if source == "-" else Path(source).suffix[1:].lower()
    for known in get_args(InputFormat):
        if (wanted or extension) == known:
            return known  # type: ignore[no-any-return]
    raise InputError(
        f"What {source!r} holds is not clear from its name.",
        hint=f"--input-format says it: {INPUT_FORMATS}.",
    )


def read_prompts(source: str, format: InputFormat) -> PromptsFile:
    """Read the entries and problems of a prompts file (`-`: standard input).

    Raises InputError if the file cannot be read, or is empty.
    """
    if source == "-":
        return _parse("standard input", sys.stdin.buffer, format)
    try:
        # A pipe or device could keep the run waiting, or never end.
        with open_input(Path(source)) as file:
            return _parse(source, file, format)
    except FileNotFoundError as error:
        raise _no_file(source) from error
    except OSError as error:
        pipe = error.errno == errno.EINVAL and not Path(source).is_dir()
        hint = "- reads standard input." if pipe else None
        raise InputError(f"Cannot read {source!r}: {os_reason(error)}.", hint=hint) from error


def _no_file(source: str) -> InputError:
    """The error for a file that is not there; the words of a prompt are often given for one."""
    folder, name = os.path.split(source)
    try:
        near = closest_name(name, set(os.listdir(folder or ".")) - {name})
    except (OSError, ValueError):  # ValueError: a null byte
        near = None
    if near:
        hint = f"Did you mean {os.path.join(folder, near)}?"
    elif folder or "." in name:
        hint = None
    else:
        hint = generate_instead(source)
    return InputError(f"Cannot read {source!r}: No such file or directory.", hint=hint)


def _parse(name: str, file: BinaryIO, format: InputFormat) -> PromptsFile:
    reader = {
        "txt": readers.read_text,
        "jsonl": readers.read_jsonl,
        "csv": readers.read_csv,
        "tsv": readers.read_tsv,
        "json": readers.read_json_array,
    }[format]
    entries: list[PromptEntry] = []
    problems: list[PromptProblem] = []
    for item in reader(file):
        if isinstance(item, PromptEntry):
            entries.append(item)
        else:
            problems.append(item)
        if len(entries) > MAX_ENTRIES:
            raise InputError(f"There are more than {MAX_ENTRIES:,} prompts in {name}.")
    if not entries and not problems:
        raise InputError(f"There is no prompt in {name}.")
    console.trace(f"{len(entries):,} prompts read from {name}")
    return PromptsFile(name=name, format=format, entries=entries, problems=problems)
