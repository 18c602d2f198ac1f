"""Validates manifest lines: the file may be damaged or edited by another program."""

import json
import re
from collections.abc import Mapping

from t2i_cli.files import state_files
from t2i_cli.files.state_files import is_amount, is_count, is_text

MAX_LINE = 2**24
"""Largest line in bytes; lines written by t2i have a few thousand."""
DONE_STATUS = "done"
RESULT_STATUSES = {DONE_STATUS, "failed", "withheld"}
"""Statuses of images; others are `invalid`, `pruned`, or those of a newer t2i."""
PRUNED_STATUS = "pruned"
"""Status of a line that takes back an earlier picture, which --prune removed."""

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_INTEGER_FIELDS = ("index", "line", "bytes")
_NUMBER_FIELDS = ("seconds", "round_trip_seconds", "usd")
_TEXT_FIELDS = ("sha256", "field", "message", "time")


def read_line(line: bytes) -> dict[str, object] | None:
    """Parse a line; `None` if it is damaged."""
    try:
        record = state_files.parse_json(line)
        if b"\\ud" in line.lower():
            # A lone surrogate has no UTF-8 encoding: gallery and merge could not write it.
            json.dumps(record, ensure_ascii=False).encode()
    except ValueError:
        return None
    return record if isinstance(record, dict) and is_valid_record(record) else None


def is_valid_record(record: Mapping[str, object]) -> bool:
    """Whether the fields that t2i reads have the right types and the required ones are set."""
    if "pin" in record:
        return _is_pin(record)
    status = record.get("status")
    if status is None:
        return True  # not about an image
    return (
        is_text(status, 40)
        and all(_is_absent(record, name) or is_count(record[name]) for name in _INTEGER_FIELDS)
        and all(_is_absent(record, name) or is_amount(record[name]) for name in _NUMBER_FIELDS)
        and all(_is_absent(record, name) or isinstance(record[name], str) for name in _TEXT_FIELDS)
        and (_is_absent(record, "file") or is_inside_folder(record["file"]))
        and _is_error(record.get("error"))
        and _is_request(record.get("request"))
        and (_is_absent(record, "earlier") or isinstance(record["earlier"], bool))
        and (_is_absent(record, "notes") or _is_texts(record["notes"]))
        and (status not in {*RESULT_STATUSES, PRUNED_STATUS} or is_text(record.get("id"), 200))
        and (status not in {DONE_STATUS, PRUNED_STATUS} or not _is_absent(record, "file"))
    )


def is_inside_folder(file: object) -> bool:
    """Whether the value is a relative path that stays inside its folder."""
    if not isinstance(file, str) or not 0 < len(file) <= 4096 or "\0" in file:
        return False
    return file[0] not in "/\\" and file[1:2] != ":" and ".." not in re.split(r"[/\\]", file)


def _is_absent(record: Mapping[str, object], name: str) -> bool:
    return record.get(name) is None


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


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
    return all(
        _is_absent(error, name) or isinstance(error[name], str) for name in ("code", "message")
    )


def _is_request(request: object) -> bool:
    if request is None:
        return True
    if not isinstance(request, dict):
        return False
    return _is_absent(request, "prompt") or isinstance(request["prompt"], str)


def pin_lines(pins: Mapping[tuple[str, str | None], str]) -> list[dict[str, object]]:
    """The lines that keep the commit of each model and revision."""
    return [
        {"model": model, "revision": revision, "pin": commit}
        for (model, revision), commit in pins.items()
    ]
