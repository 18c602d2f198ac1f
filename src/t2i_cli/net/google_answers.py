"""Parses the JSON answers of Google Cloud's REST APIs, and checks the fields that t2i reads.

An address that leads to something else than Google may answer anything with status 200.
"""

import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from t2i_cli.errors import RemoteError
from t2i_cli.files.state_files import is_count, parse_json

ENDPOINT_HOST = re.compile(r"(?:[A-Za-z0-9.-]+(?::[0-9]{1,5})?)?")
"""A dedicated endpoint's host, which becomes part of a URL to which a token is sent."""

_MAX_TEXT = 2**16
_COUNT = re.compile(r"[0-9]{1,15}")


class GoogleAnswer(dict[str, Any]):
    """A JSON object of an answer. Raises RemoteError for a key that it lacks."""

    def __missing__(self, key: str) -> NoReturn:
        raise answer_error(f"it lacks {key}")


def parse_answer(body: bytes, *, may_be_empty: bool = True) -> GoogleAnswer:
    """The answer's object, {} for an empty body if there may be one. Raises RemoteError.

    A null is left out, as Google's APIs do with what is not set.
    """
    if not body and not may_be_empty:
        # It would be taken for a list of nothing: what is there may be paid for.
        raise answer_error("it is empty")
    try:
        value = parse_json(body) if body else {}
    except ValueError as error:
        raise answer_error("it is no JSON") from error
    if not isinstance(value, dict):
        raise answer_error("it is no object")
    return _checked(value)


def answer_error(reason: str) -> RemoteError:
    """The error for an answer that Google would not give."""
    return RemoteError(
        f"The answer makes no sense: {reason}.",
        hint="Is --api-endpoint an address of Google Cloud's interfaces?",
    )


def error_object(body: bytes) -> dict[str, Any]:
    """Google's `error` in the body of an error response; {} for anything else."""
    try:
        value = parse_json(body)
    except ValueError:
        return {}
    # Some services wrap the error in a list.
    value = value[0] if isinstance(value, list) and value else value
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}


def clock_offset(headers: Mapping[str, str], previous: float) -> float:
    """Seconds that Google's clock is ahead of this machine's; `previous` without a Date header."""
    try:
        return parsedate_to_datetime(headers.get("date", "")).timestamp() - time.time()
    except (ValueError, OverflowError):
        return previous


def _checked(record: Mapping[str, object]) -> GoogleAnswer:
    answer = GoogleAnswer()
    for key, value in record.items():
        if value is None:
            continue
        check = _CHECKS.get(key)
        if check and not check(value):
            raise answer_error(f"its {key} is none")
        # The keys of a free map are the user's own.
        answer[key] = value if key in _FREE_MAPS else _nested(value)
    return answer


def _nested(value: object) -> object:
    if isinstance(value, dict):
        return _checked(value)
    return [_nested(item) for item in value] if isinstance(value, list) else value


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        return False
    return not any("\ud800" <= c <= "\udfff" for c in value)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_map_of_texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_map_of_counts(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_count, value.values()))


def _is_integer(value: object) -> bool:
    """Whether it is a number, or as Google writes those of 64 bits, its digits."""
    return is_count(value) or (isinstance(value, str) and _COUNT.fullmatch(value) is not None)


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).timestamp() >= 0
    except (ValueError, OverflowError, OSError):
        return False


def _is_host(value: object) -> bool:
    return isinstance(value, str) and ENDPOINT_HOST.fullmatch(value) is not None


_FREE_MAPS = {"labels", "metadata", "trafficSplit"}
_CHECKS: Mapping[str, Callable[[object], bool]] = (
    dict.fromkeys(
        ("name", "id", "model", "displayName", "machineType", "acceleratorType", "artifactUri")
        + ("imageUri", "serviceAccount", "idleScaledownPeriod", "crc32c", "nextPageToken")
        + ("description", "locationId", "lastUpdateTime"),
        _is_text,
    )
    | dict.fromkeys(
        ("dedicatedResources", "machineSpec", "deployedModel", "containerSpec", "scaleToZeroSpec")
        + ("error", "response", "metadata", "softDeletePolicy", "versioning"),
        _is_object,
    )
    | dict.fromkeys(("deployedModels", "env", "points"), _is_list_of_objects)
    | dict.fromkeys(
        ("acceleratorCount", "minReplicaCount", "maxReplicaCount", "size", "int64Value", "code")
        + ("projectNumber", "retentionDurationSeconds", "availableReplicaCount"),
        _is_integer,
    )
    | dict.fromkeys(("done", "dedicatedEndpointEnabled"), lambda value: isinstance(value, bool))
    | {
        "labels": _is_map_of_texts,
        "trafficSplit": _is_map_of_counts,
        "permissions": _is_list_of_texts,
        "createTime": _is_time,
        "dedicatedEndpointDns": _is_host,
    }
)
"""What the fields hold that t2i reads, wherever they stand in an answer."""
