"""What a line of a manifest must be to count: anyone may have written the file since."""

import json
import re
from collections.abc import Mapping

from t2i_cli.files import state_files
from t2i_cli.files.state_files import is_amount, is_count, is_text

MAX_LINE = 2**24
"""Bytes; t2i's own lines take a few thousand."""
DONE_STATUS = "done"
RESULT_STATUSES = {DONE_STATUS, "failed", "withheld"}
"""What a status says of an image; another one is `invalid`, or a newer t2i's."""

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_NUMBERS = ("index", "line", "bytes")
_AMOUNTS = ("seconds", "round_trip_seconds")
_TEXTS = ("sha256", "field", "message", "time")


def read_line(line: bytes) -> dict[str, object] | None:
    """A line as an object, `None` for a damaged one."""
    try:
        record = state_files.parse_json(line)
        if b"\\ud" in line.lower():
            # Half of a surrogate pair has no place in UTF-8: neither gallery nor merge could write.
            json.dumps(record, ensure_ascii=False).encode()
    except ValueError:
        return None
    return record if isinstance(record, dict) and is_valid_record(record) else None


def is_valid_record(record: Mapping[str, object]) -> bool:
    """Whether every field that is read has a value of its kind, and none is missing."""
    if "pin" in record:
        return _is_pin(record)
    status = record.get("status")
    if status is None:
        return True  # it says nothing of an image
    return (
        is_text(status, 40)
        and all(_is_absent(record, n) or is_count(record[n]) for n in _NUMBERS)
        and all(_is_absent(record, n) or is_amount(record[n]) for n in _AMOUNTS)
        and all(_is_absent(record, n) or isinstance(record[n], str) for n in _TEXTS)
        and (_is_absent(record, "file") or is_inside_folder(record["file"]))
        and _is_error(record.get("error"))
        and _is_request(record.get("request"))
        and (status not in RESULT_STATUSES or is_text(record.get("id"), 200))
        and (status != DONE_STATUS or not _is_absent(record, "file"))
    )


def is_inside_folder(file: object) -> bool:
    """Whether it is a path, relative to a folder, that does not leave it."""
    if not isinstance(file, str) or not 0 < len(file) <= 4096 or "\0" in file:
        return False
    return file[0] not in "/\\" and file[1:2] != ":" and ".." not in re.split(r"[/\\]", file)


def _is_absent(record: Mapping[str, object], name: str) -> bool:
    return record.get(name) is None


def _is_pin(record: Mapping[str, object]) -> bool:
    pin = record["pin"]
    return (
        isinstance(pin, str)
        and _COMMIT.fullmatch(pin) is not None
        and is_text(record.get("model"))
        and (_is_absent(record, "revision") or is_text(record["revision"]))
    )


def _is_error(error: object) -> bool:
    if error is None:
        return True
    if not isinstance(error, dict):
        return False
    return all(_is_absent(error, n) or isinstance(error[n], str) for n in ("code", "message"))


def _is_request(request: object) -> bool:
    if request is None:
        return True
    if not isinstance(request, dict):
        return False
    return _is_absent(request, "prompt") or isinstance(request["prompt"], str)
