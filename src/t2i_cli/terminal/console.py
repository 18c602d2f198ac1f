"""Console output: results on stdout; messages, errors and events on stderr.

The process has one `Console`, `console`; each command configures it from its `--json`, `--quiet`,
`--verbose` and `--events` options.
"""

import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO, TextIO

from t2i_cli.errors import InputError, T2IError, internal_error
from t2i_cli.known_secrets import scrub_secrets
from t2i_cli.terminal import structured_log
from t2i_cli.terminal.colours import painted

EVENTS_VERSION = 1
"""Version of the `--events` format; raised when older readers could misread it."""
_SEVERITIES = {"note": "INFO", "warning": "WARNING", "log": "ERROR"}
"""Of the kinds of messages, in a structured log; the last is a bug's traceback."""


class Console:
    """Writes results, messages and errors in the format that the options select."""

    def __init__(self) -> None:
        self.json = False
        self.quiet = False
        self.verbose = False
        self.events = False
        self._explained: BaseException | None = None
        self._out: TextIO | None = None
        self._err: TextIO | None = None
        self._log: TextIO | None = None
        self._told_escapes = False
        self._started = time.monotonic()
        self._traced: set[str] = set()

    def configure(
        self,
        *,
        json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        events: bool = False,
    ) -> None:
        """Set a command's output options."""
        self.json, self.quiet, self.verbose, self.events = json, quiet, verbose, events

    def use_structured_log(self) -> None:
        """From now on write to stderr what Cloud Logging reads with its severity."""
        self._log = sys.stderr
        structured_log.install_structured_log(self._log)

    @property
    def has_structured_log(self) -> bool:
        """Whether what is not a result is written as entries of a structured log."""
        return self._log is not None

    @property
    def interactive(self) -> bool:
        """Whether stdin and stderr are a terminal, so that the user can be asked."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    @property
    def asks(self) -> bool:
        """Whether the user is asked what a script is not: on a terminal, for output to people."""
        return self.interactive and not (self.json or self.events)

    @property
    def live(self) -> bool:
        """Whether stderr can show a progress bar."""
        dumb = os.environ.get("TERM") == "dumb"
        return sys.stderr.isatty() and not (dumb or self.quiet or self.events)

    @property
    def stdout(self) -> TextIO:
        """The stream of results, also inside `redirect_stdout()`."""
        return self._out or sys.stdout

    def result(self, line: str) -> None:
        """Print a line of the result; what cannot be encoded is escaped, which is told once."""
        out = self.stdout
        encoding = out.encoding or "utf-8"
        # A name of undecodable bytes, or a state file, may hold lone surrogates.
        encoded = line.encode(encoding, "backslashreplace").decode(encoding)
        if encoded != line and not self._told_escapes:
            self._told_escapes = True
            self.warn(f"Characters that {encoding} lacks are escaped on standard output.")
        out.write(encoded + "\n")
        out.flush()

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Print rows of the result in columns, wrapped to the width if stdout is a terminal."""
        columns = os.get_terminal_size(self.stdout.fileno()).columns if self.stdout.isatty() else 0
        for line in table_lines(rows, columns or None):
            self.result(line)

    def result_json(self, value: object) -> None:
        """Print a JSON value of the result on one line."""
        self.result(_json_line(value, self.stdout))

    def note(self, message: str) -> None:
        """Print a sentence for people, unless --quiet."""
        if not self.quiet:
            self._message("note", message)

    def warn(self, message: str) -> None:
        """Print a warning, also with --quiet."""
        self._message("warning", message, prefix="warning: ", colour="yellow")

    def detail(self, message: str) -> None:
        """Print a line with --verbose only."""
        if self.verbose:
            self._message("note", message)

    def trace(self, message: str, *, once: bool = False) -> None:
        """Print a step of the work with the seconds since the start, with --verbose only.

        With `once`, the same message is not printed again.
        """
        if not self.verbose or (once and message in self._traced):
            return
        if once:
            self._traced.add(message)
        self.detail(f"[{time.monotonic() - self._started:.2f} s] {message}")

    def cause(self, error: BaseException) -> None:
        """Print the traceback of an error's cause, with --verbose only, and once an error."""
        if self.verbose and error.__cause__ is not None and error is not self._explained:
            self._explained = error
            self.detail("".join(traceback.format_exception(error.__cause__)).rstrip())

    def bug(self, raised: Exception) -> None:
        """Print an unexpected exception's traceback; in JSON the error object follows it."""
        self._message("log", "".join(traceback.format_exception(raised)).rstrip())
        if self.json or self.events:
            self.error(internal_error(raised, hint="The traceback is above; please report it."))

    def event(self, kind: str, **values: object) -> None:
        """Write an event to stderr as one line of JSON, for --events."""
        line = {"v": EVENTS_VERSION, "event": kind, **values}
        self._stderr(_json_line(line, self._err or sys.stderr))

    def error(self, error: T2IError) -> None:
        """Print an error: message and hint, or an object with --json or --events."""
        if self.events:
            self.event("error", error=error.to_json())
            return
        if self._log:
            said = f"{error.message} {error.hint}" if error.hint else error.message
            structured_log.write_entry(self._log, "ERROR", said, error.to_json())
            return
        if self.json:
            self._stderr(_json_line({"error": error.to_json()}, self._err or sys.stderr))
            return
        self._stderr(error.message, prefix="error: ", colour="red")
        if error.hint:
            self._stderr(error.hint, prefix="hint: ", colour="cyan")

    def confirm(self, question: str) -> None:
        """Ask the user to agree; raises InputError on no, or without a terminal."""
        if not self.interactive:
            raise InputError(f"{question} There is no terminal to ask on.", hint="--yes agrees.")
        if not self.ask(question):
            raise InputError("Declined; nothing was changed.")

    def ask(self, question: str, *, default: bool = False) -> bool:
        """Ask a yes/no question; Enter alone returns the default."""
        line = self.answer(f"{question} [{'Y/n' if default else 'y/N'}]")
        # At end of input the line is empty, without even a newline: that is a no.
        return default if line.strip() == "" != line else line.strip().lower() in {"y", "yes"}

    def answer(self, question: str) -> str:
        """Ask a question and return the line typed."""
        sys.stderr.write(f"{question} ")
        sys.stderr.flush()
        return sys.stdin.readline()

    @contextmanager
    def redirect_stdout(self) -> Iterator[None]:
        """Redirect what libraries print on stdout to stderr; stdout is for results."""
        self._out, sys.stdout = sys.stdout, sys.stderr
        if self._log:
            sys.stdout = structured_log.EntryStream(self.note)
        try:
            yield
        finally:
            sys.stdout, self._out = self._out, None

    @contextmanager
    def redirect_stderr(self) -> Iterator[None]:
        """With --events, turn what libraries print on stderr into `log` events."""
        if not self.events:
            yield
            return
        self._err, sys.stderr = (
            sys.stderr,
            _LineStream(lambda line: self.event("log", message=line)),
        )
        try:
            yield
        finally:
            sys.stderr, self._err = self._err, None

    def _message(self, kind: str, message: str, prefix: str = "", colour: str = "") -> None:
        if self.events:
            self.event(kind, message=message)
        elif self._log:
            structured_log.write_entry(self._log, _SEVERITIES[kind], message)
        else:
            self._stderr(message, prefix, colour)

    def _stderr(self, line: str, prefix: str = "", colour: str = "") -> None:
        # A closed stderr or terminal must not turn a finished image into a failure.
        with suppress(OSError):
            stream = self._err or sys.stderr
            shown = painted(prefix, colour, stream) if prefix else ""
            stream.write(shown + escape_controls(scrub_secrets(line)) + "\n")
            stream.flush()


class _LineStream(io.TextIOBase):
    """A text stream that calls `on_line` with every line that is not blank."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._partial_line = ""

    def write(self, text: str) -> int:
        """Buffer the text, and pass on its complete lines."""
        *lines, self._partial_line = (self._partial_line + text).replace("\r", "\n").split("\n")
        for line in lines:
            if line.strip():
                self._on_line(line)
        return len(text)


console = Console()


def stdout_bytes() -> BinaryIO:
    """The binary stream of results, for image bytes."""
    return console.stdout.buffer


def table_lines(rows: Sequence[Sequence[str]], columns: int | None = None) -> list[str]:
    """Format rows as aligned lines of text, by the display width of characters.

    Cells are wrapped if a line would be wider than `columns`; without it, every row is one line.
    """
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in rows[0]:
        table.add_column(overflow="fold")
    for row in rows:
        # Text, so that rich does not interpret markup or emoji codes.
        table.add_row(*map(Text, row))
    widest = max(sum(2 * len(cell) + 2 for cell in row) for row in rows) + len(rows[0])
    out = io.StringIO()
    RichConsole(file=out, width=columns or widest, color_system=None).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def escape_controls(text: str) -> str:
    """Escape control characters and bidi overrides, which could manipulate a terminal.

    As JSON does, in which characters beyond U+FFFF have two escapes.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else json.dumps(c)[1:-1] for c in text)


def _json_line(value: object, stream: TextIO) -> str:
    """The value as JSON on one line; all but ASCII is escaped if the stream cannot encode it."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def format_bytes(size: int) -> str:
    """Format a number of bytes for people, in decimal units."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
