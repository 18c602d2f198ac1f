"""A limit on log lines of one kind, so that clients cannot fill the log."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

LOG_LINES = 5
"""Lines of one kind in a period that are written."""
LOG_PERIOD = 60.0
"""Seconds of a period."""
_MAX_KINDS = 200
"""Kinds told apart in a period; all others are one kind."""


@dataclass
class _Kind:
    """What was logged of a kind in this period."""

    logger: str
    level: int
    line: str
    written: int = 0
    left_out: int = 0


class LogLimit(logging.Filter):
    """Lets LOG_LINES records of a kind pass in each LOG_PERIOD and counts the rest.

    A kind is a logger and the first line of a message before its arguments are put in.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._started = time.monotonic()
        self._summing_up = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if self._summing_up:
            return True
        line = str(record.msg).partition("\n")[0]
        key = (record.name, line)
        if key not in self._kinds and len(self._kinds) >= _MAX_KINDS:
            line = "of other kinds"
            key = ("", line)
        kind = self._kinds.setdefault(key, _Kind(record.name, record.levelno, line))
        if kind.written < LOG_LINES:
            kind.written += 1
            return True
        kind.left_out += 1
        return False

    def tick(self) -> None:
        """At the end of a period, log how many records of each kind were left out."""
        if time.monotonic() - self._started > LOG_PERIOD:
            self.sum_up()

    def sum_up(self) -> None:
        """Log how many records of each kind were left out, and begin a period."""
        ended, self._kinds = self._kinds, {}
        self._started = time.monotonic()
        self._summing_up = True
        try:
            for kind in ended.values():
                if kind.left_out:
                    logging.getLogger(kind.logger).log(
                        kind.level, "%d more lines like this: %s", kind.left_out, kind.line
                    )
        finally:
            self._summing_up = False


@contextmanager
def limited_logs(loggers: Sequence[str]) -> Iterator[LogLimit]:
    """Limit what these loggers write until the block ends, and then tell what was left out."""
    limit = LogLimit()
    for name in loggers:
        # First, as the filter of secrets puts the arguments in, and each line would be a kind.
        logging.getLogger(name).filters.insert(0, limit)
    try:
        yield limit
    finally:
        limit.sum_up()
        for name in loggers:
            logging.getLogger(name).removeFilter(limit)
