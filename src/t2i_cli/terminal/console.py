"""Everything a person or a script sees: results on stdout, all else on stderr.

One `Console` serves the process: `main()` makes it current, a command configures it from its
`--json`, `--quiet`, `--verbose` and `--events` options.
"""

import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO, TextIO

from t2i_cli.errors import InputError, T2IError

EVENTS_VERSION = 1
"""Of what `--events` writes; it changes when a reader of an older one could misread it."""


class Console:
    """Where results, notes and errors go, and in which form."""

    def __init__(self) -> None:
        self.json = False
        self.quiet = False
        self.verbose = False
        self.events = False
        self._out: TextIO | None = None
        self._err: TextIO | None = None

    def configure(
        self,
        *,
        json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        events: bool = False,
    ) -> None:
        """Take over a command's output options."""
        self.json, self.quiet, self.verbose, self.events = json, quiet, verbose, events

    @property
    def interactive(self) -> bool:
        """Whether a person sits at the terminal and can be asked."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    @property
    def live(self) -> bool:
        """Whether stderr can show a moving progress line."""
        dumb = os.environ.get("TERM") == "dumb"
        return sys.stderr.isatty() and not (dumb or self.quiet or self.events)

    @property
    def stdout(self) -> TextIO:
        """The stream of results, also while libraries' prints go elsewhere."""
        return self._out or sys.stdout

    def result(self, line: str) -> None:
        """A line of the result."""
        out = self.stdout
        out.write(line + "\n")
        out.flush()

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Rows of the result in columns, folded to the width of a terminal where that is one."""
        columns = os.get_terminal_size(self.stdout.fileno()).columns if self.stdout.isatty() else 0
        for line in table_lines(rows, columns or None):
            self.result(line)

    def result_json(self, value: object) -> None:
        """A JSON value of the result, on one line."""
        self.result(json.dumps(value, ensure_ascii=False))

    def note(self, message: str) -> None:
        """A sentence for people; silent under --quiet."""
        if not self.quiet:
            self._say("note", message)

    def warn(self, message: str) -> None:
        """A warning, which --quiet does not silence."""
        self._say("warning", message, prefix="warning: ")

    def detail(self, message: str) -> None:
        """A line that only --verbose shows."""
        if self.verbose:
            self._say("note", message)

    def cause(self, error: BaseException) -> None:
        """The traceback of what an error came of, which only --verbose shows."""
        if self.verbose and error.__cause__ is not None:
            self.detail("".join(traceback.format_exception(error.__cause__)).rstrip())

    def event(self, kind: str, **values: object) -> None:
        """A line for scripts that follow a run: an object on stderr, with --events."""
        line = {"v": EVENTS_VERSION, "event": kind, **values}
        self._stderr(json.dumps(line, ensure_ascii=False))

    def error(self, error: T2IError) -> None:
        """The one report of a failure: a sentence and a hint, or an object with --json."""
        if self.events:
            self.event("error", error=error.to_json())
            return
        if self.json:
            self._stderr(json.dumps({"error": error.to_json()}, ensure_ascii=False))
            return
        self._stderr(f"error: {error.message}")
        if error.hint:
            self._stderr(f"hint: {error.hint}")

    def confirm(self, question: str) -> None:
        """Go on only if the person agrees; without a terminal, or on no, raise InputError."""
        if not self.interactive:
            raise InputError(f"{question} There is no terminal to ask on.", hint="--yes agrees.")
        if not self.ask(question):
            raise InputError("Declined; nothing was changed.")

    def ask(self, question: str, *, default: bool = False) -> bool:
        """Whether the person at the terminal agrees; Enter alone is the default."""
        line = self.answer(f"{question} [{'Y/n' if default else 'y/N'}]")
        # An input that is at its end has not even Enter.
        return default if line.strip() == "" != line else line.strip().lower() in {"y", "yes"}

    def answer(self, question: str) -> str:
        """The line that the person at the terminal types."""
        sys.stderr.write(f"{question} ")
        sys.stderr.flush()
        return sys.stdin.readline()

    @contextmanager
    def redirect_stdout(self) -> Iterator[None]:
        """Keep what libraries print off stdout, which belongs to the result."""
        self._out, sys.stdout = sys.stdout, sys.stderr
        try:
            yield
        finally:
            sys.stdout, self._out = self._out, None

    @contextmanager
    def redirect_stderr(self) -> Iterator[None]:
        """With --events, have what libraries print on stderr become events as well."""
        if not self.events:
            yield
            return
        self._err, sys.stderr = sys.stderr, _Lines(lambda line: self.event("log", message=line))
        try:
            yield
        finally:
            sys.stderr, self._err = self._err, None

    def _say(self, kind: str, message: str, prefix: str = "") -> None:
        if self.events:
            self.event(kind, message=message)
        else:
            self._stderr(prefix + message)

    def _stderr(self, line: str) -> None:
        # A closed stderr, or terminal, must not turn a finished image into a failure.
        with suppress(OSError):
            stream = self._err or sys.stderr
            stream.write(escape_controls(line) + "\n")
            stream.flush()


class _Lines(io.TextIOBase):
    """A text stream that hands on every line that is not blank."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self._begun = ""

    def write(self, text: str) -> int:
        """Hand on the lines that the text ends."""
        *lines, self._begun = (self._begun + text).replace("\r", "\n").split("\n")
        for line in lines:
            if line.strip():
                self._take(line)
        return len(text)


console = Console()


def stdout_bytes() -> BinaryIO:
    """The binary stream of results, for image bytes."""
    return console.stdout.buffer


def table_lines(rows: Sequence[Sequence[str]], columns: int | None = None) -> list[str]:
    """The rows as lines of text, aligned by what characters take on a terminal.

    Cells are folded where a line would be wider than `columns`; without, every row is one line.
    """
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in rows[0]:
        table.add_column(overflow="fold")
    for row in rows:
        # As it is: neither rich's markup nor its emoji.
        table.add_row(*map(Text, row))
    widest = max(sum(2 * len(cell) + 2 for cell in row) for row in rows) + len(rows[0])
    out = io.StringIO()
    RichConsole(file=out, width=columns or widest, color_system=None).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def escape_controls(text: str) -> str:
    """The text with what could steer a terminal written as escapes (bidi overrides, controls)."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in text)


def format_bytes(size: int) -> str:
    """A number of bytes for people, in the decimal units that disks are sold by."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
