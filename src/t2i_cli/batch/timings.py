"""Cache of generation times per model and device; a plan estimates its duration from it."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from t2i_cli.files.state_files import is_amount, read_json, replace_text
from t2i_cli.files.user_folders import NoHomeError, user_folder
from t2i_cli.request import ResolvedRequest

_MAX_SECONDS_PER_COST = 1e9
"""Seconds for each unit of cost (see `relative_cost`); larger values are taken as damaged."""
_NEW_RUN_WEIGHT = 0.5
"""Weight of a new run in the moving average, from 0 to 1."""


def relative_cost(request: ResolvedRequest) -> float:
    """Cost of an image relative to others of its model: steps times megapixels."""
    pixels = (request.width or 1000) * (request.height or 1000)
    return (request.steps or 1) * pixels / 1e6


def lookup_timing(model: str, device: str | None) -> float | None:
    """Seconds for each unit of cost, from earlier runs, or `None` where there were none."""
    return _read().get(f"{model} on {device}")


def estimate_seconds(
    requests: Iterable[ResolvedRequest], devices: dict[str, str | None]
) -> float | None:
    """Estimated seconds for the requests; `None` if one of their models has no timing."""
    timings: dict[str, float | None] = {
        model: lookup_timing(model, device) for model, device in devices.items()
    }
    total = 0.0
    for request in requests:
        seconds_per_cost = timings.get(request.model)
        if seconds_per_cost is None:
            return None
        total += relative_cost(request) * seconds_per_cost
    return total


def record_timing(model: str, device: str | None, seconds_per_cost: float) -> None:
    """Update the moving average of a model on a device; errors in writing are ignored."""
    timings = _read()
    key = f"{model} on {device}"
    timings[key] = (
        seconds_per_cost
        if key not in timings
        else (1 - _NEW_RUN_WEIGHT) * timings[key] + _NEW_RUN_WEIGHT * seconds_per_cost
    )
    with suppress(OSError, NoHomeError):
        file = _path()
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(timings, indent=1), mode=0o666)


def _path() -> Path:
    return user_folder("cache") / "timings.json"


def _read() -> dict[str, float]:
    """Read all timings; a damaged file counts as empty, a damaged value is left out."""
    try:
        found = read_json(_path())
    except (OSError, ValueError, NoHomeError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        key: float(v) for key, v in found.items() if is_amount(v) and 0 < v < _MAX_SECONDS_PER_COST
    }
