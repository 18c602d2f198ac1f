"""Measurements of a denoiser's engines on this device, remembered between runs."""

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t2i_cli.backends.local.device import Device
from t2i_cli.files.state_files import is_amount, read_json, replace_text
from t2i_cli.files.user_folders import NoHomeError, user_folder

_FORMAT = 1
_MAX_REMEMBERED = 500
"""Measurements that are kept, the oldest go first."""
_TIMES = 3


@dataclass(frozen=True, kw_only=True)
class EngineMeasurement:
    """Seconds of one forward as it was (`eager`) and the other way, and of preparing that once."""

    eager: float
    other: float
    preparation: float = 0.0

    def is_faster(self, least: float) -> bool:
        """Whether the other way is at least so many times as fast."""
        return self.eager >= least * self.other

    @property
    def gain(self) -> float:
        """The part of a forward's time that the other way saves, from 0 to 1."""
        return max(0.0, 1 - self.other / self.eager) if self.eager else 0.0


FAILED = EngineMeasurement(eager=0.0, other=1e9)
"""What is remembered of a way that failed: never faster."""


def measurements_path() -> Path:
    """The file of all measurements. Raises NoHomeError."""
    return user_folder("cache") / "engines.json"


def lookup_measurement(key: str) -> EngineMeasurement | None:
    """The measurement of a key, from this run or an earlier one."""
    return _read().get(key)


def remember_measurement(key: str, measured: EngineMeasurement) -> None:
    """Remember a measurement; where nothing can be written, it is made anew in the next run."""
    found = _read()
    found.pop(key, None)
    found[key] = measured
    kept = dict(list(found.items())[-_MAX_REMEMBERED:])
    document = {"format": _FORMAT, "seconds": {name: asdict(one) for name, one in kept.items()}}
    with suppress(OSError, NoHomeError):
        file = measurements_path()
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(document, indent=1), mode=0o666)


def _read() -> dict[str, EngineMeasurement]:
    """All measurements; a damaged file counts as empty, a damaged entry is left out."""
    try:
        document = read_json(measurements_path())
    except (OSError, ValueError, NoHomeError):
        return {}
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        return {}
    entries = document.get("seconds")
    if not isinstance(entries, dict):
        return {}
    names = tuple(EngineMeasurement.__dataclass_fields__)
    return {
        key: EngineMeasurement(**{name: float(entry[name]) for name in names})
        for key, entry in entries.items()
        if isinstance(entry, dict) and all(is_amount(entry.get(name)) for name in names)
    }


def has_faster(parts: Mapping[str, str], least: float) -> bool:
    """Whether any measurement with these parts of its key was so many times as fast."""
    beginning = measurement_key(parts)
    return any(key.startswith(beginning) and one.is_faster(least) for key, one in _read().items())


def synchronize(device: Device) -> None:
    """Wait until the device has computed all that it was given."""
    import torch

    if device.kind in {"cuda", "rocm"}:
        torch.cuda.synchronize(device.name)
    elif device.kind == "xpu":
        torch.xpu.synchronize(device.name)
    elif device.kind == "mps":
        torch.mps.synchronize()


def measure_seconds(call: Callable[[], Any], synchronize: Callable[[], None]) -> float:
    """Seconds of the fastest of a few calls: other programs can only slow a call down."""
    fastest = math.inf
    for _ in range(_TIMES):
        synchronize()
        started = time.perf_counter()
        call()
        synchronize()
        fastest = min(fastest, time.perf_counter() - started)
    return fastest


def is_close(output: Any, expected: Any) -> bool:  # noqa: ANN401 - a network's output
    """Whether two outputs agree as far as another order of the same arithmetic lets them.

    By the relative error (L2) of each tensor: 5 % in half precision, where a step of a network in
    bfloat16 differs by 1 % from one in float32, and 0.1 % in float32.
    """
    import torch
    from torch.utils import _pytree as pytree

    ones, others = pytree.tree_leaves(output), pytree.tree_leaves(expected)
    if len(ones) != len(others):
        return False
    for one, other in zip(ones, others, strict=True):
        if not isinstance(other, torch.Tensor):
            continue
        if not isinstance(one, torch.Tensor) or one.shape != other.shape:
            return False
        limit = 0.001 if other.dtype in {torch.float32, torch.float64} else 0.05
        difference = torch.linalg.vector_norm(one.float() - other.float())
        size = torch.linalg.vector_norm(other.float())
        if not bool(difference <= limit * size):
            return False
    return True


def measurement_key(parts: Mapping[str, str]) -> str:
    """The key of a measurement, readable: `engine=compiled; gpu=NVIDIA H200; …`."""
    return "; ".join(f"{name}={value}" for name, value in parts.items())
