"""Log lines as Google's Cloud Logging reads them: an object of JSON each, with its severity.

Every other line of a container's stderr it takes for an error. The fields are those of
cloud.google.com/logging/docs/structured-logging.
"""

import io
import json
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from t2i_cli.known_secrets import SecretFilter, scrub_secrets

MAX_ENTRY_BYTES = 16_000
"""Container runtimes cut a line at 16 KiB, and a part of an entry is no JSON."""
_SEVERITIES = {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}
"""Those of Python's levels, which Cloud Logging calls the same."""
_uncaught = logging.getLogger(__name__)


def write_entry(stream: TextIO, severity: str, message: str, error: object = None) -> None:
    """Write an entry as one line, without this process's secrets.

    Of a message that is too long the end stays, which of a traceback says what happened.
    """
    text = scrub_secrets(message)
    details = {} if error is None else {"error": error}
    line = json.dumps({"severity": severity, "message": text, **details})
    kept = MAX_ENTRY_BYTES
    while len(line) > MAX_ENTRY_BYTES:
        kept //= 2
        line = json.dumps({"severity": severity, "message": f"… {text[-kept:]}"})
    # A closed stderr must not turn a finished image into a failure.
    with suppress(OSError):
        stream.write(line + "\n")
        stream.flush()


def install_structured_log(stream: TextIO) -> None:
    """Write as entries to `stream` what this process's Python code logs, warns of and prints.

    What native code writes to the descriptor stays as it is.
    """
    handler = _EntryHandler(stream)
    handler.addFilter(SecretFilter())
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    sys.stderr = EntryStream(lambda text: write_entry(stream, "WARNING", text))
    sys.excepthook = lambda kind, error, tb: _uncaught.critical("A bug.", exc_info=error)
    threading.excepthook = lambda args: _uncaught.error(
        "A thread met a bug.", exc_info=args.exc_value
    )
    sys.unraisablehook = lambda args: _uncaught.error(
        "What was raised could not be passed on.", exc_info=args.exc_value
    )


class EntryStream(io.TextIOBase):
    """A text stream that calls `on_text` with what is written to it, up to an end of line."""

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text = on_text
        self._lock = threading.RLock()
        self._text = ""

    def write(self, text: str) -> int:
        """Keep the text, or pass it on with what was kept if it ends a line."""
        with self._lock:
            self._text += text
            if self._text.endswith(("\n", "\r")):
                complete, self._text = self._text.strip("\r\n"), ""
                if complete.strip():
                    self._on_text(complete)
        return len(text)


class _EntryHandler(logging.Handler):
    """Writes a record with its traceback as one entry."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        severity = record.levelname if record.levelname in _SEVERITIES else "DEFAULT"
        write_entry(self._stream, severity, self.format(record))
