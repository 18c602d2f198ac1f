"""How long images took on this machine, by model and device: what a plan's estimate comes from."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from t2i_cli.files.state_files import is_amount, read_json, replace_text
from t2i_cli.request import ResolvedRequest

_SLOWEST = 1e9
"""Seconds for each unit of cost; what is more than 30 years is no measurement."""
_WEIGHT = 0.5
"""How much a new run counts against what was known."""


def relative_cost(request: ResolvedRequest) -> float:
    """The work of an image relative to others of its model: steps times megapixels."""
    pixels = (request.width or 1000) * (request.height or 1000)
    return (request.steps or 1) * pixels / 1e6


def lookup_timing(model: str, device: str | None) -> float | None:
    """Seconds for each unit of cost, from earlier runs, or `None` where there were none."""
    return _read().get(f"{model} on {device}")


def estimate_seconds(
    requests: Iterable[ResolvedRequest], devices: dict[str, str | None]
) -> float | None:
    """Seconds that the requests will take, or `None` if any of their models never ran here."""
    paces: dict[str, float | None] = {m: lookup_timing(m, device) for m, device in devices.items()}
    total = 0.0
    for request in requests:
        pace = paces.get(request.model)
        if pace is None:
            return None
        total += relative_cost(request) * pace
    return total


def record_timing(model: str, device: str | None, pace: float) -> None:
    """Remember the seconds for each unit of cost; a cache that cannot be written is no failure."""
    paces = _read()
    key = f"{model} on {device}"
    paces[key] = pace if key not in paces else (1 - _WEIGHT) * paces[key] + _WEIGHT * pace
    file = _path()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(paces, indent=1), mode=0o666)


def _path() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("t2i", appauthor=False) / "timings.json"


def _read() -> dict[str, float]:
    """What is known; a damaged file or value counts as none."""
    try:
        found = read_json(_path())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: float(v) for key, v in found.items() if is_amount(v) and 0 < v < _SLOWEST}
