"""Say why a GPU cannot be used: hidden, wrongly named, no build of torch for it, an old driver."""

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from t2i_cli.errors import InputError, error_reason
from t2i_cli.events import Notice, OnEvent
from t2i_cli.known_names import suggest_name
from t2i_cli.models import libraries

ACCELERATOR_VARIABLE = "AIP_ACCELERATOR_TYPE"
"""Vertex AI sets it in a container on a machine with an accelerator, to that one's type."""
MACHINE_VARIABLE = "AIP_MACHINE_TYPE"
"""Vertex AI sets it in each container, to the machine's type."""
_GPU_MACHINE = re.compile(r"(a[2-9]|g[2-9])x?-")
"""Google's machine series that have GPUs without being asked for them: A2, A3, A4, A4X, G2, G4."""
_VISIBLE = {
    "cuda": ("CUDA_VISIBLE_DEVICES",),
    "rocm": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    "xpu": ("ZE_AFFINITY_MASK",),
}
"""The variables that choose among the GPUs of a kind, as torch reads them; the first one set."""
_NAMES_GPU = re.compile(r"\s*(\+?\d|GPU-|MIG-)")
"""A value that begins otherwise hides every GPU: "", "-1", Slurm's "NoDevFiles"."""
_FILES = {
    "cuda": ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*", "usr/lib/wsl/lib/libcuda.so*"),
    "rocm": ("dev/kfd",),
}
"""What the driver of a card leaves in the file system of Linux, and of Windows' Linux."""
_ROOT = Path("/")
_MAKERS = {"cuda": "NVIDIA", "rocm": "AMD", "xpu": "Intel"}
_BUILDS = {"cuda": "CUDA", "rocm": "ROCm", "xpu": "XPUs"}
_INSTALL = "https://pytorch.org/get-started/locally/"
_OTHERWISE = "Or compute on the CPU, by --device cpu or T2I_DEVICE=cpu."


@dataclass(frozen=True, kw_only=True)
class Absence:
    """Why torch uses no GPU of a kind, as a clause, and what to do, as a sentence."""

    reason: str
    fix: str

    @property
    def sentence(self) -> str:
        """The reason as a sentence."""
        return f"{self.reason[0].upper()}{self.reason[1:]}."


def absent_device_error(name: str, listed: str, names: Iterable[str]) -> InputError:
    """The error for a device that is not among `listed`; `names` are what one may be called."""
    kind, _, index = name.partition(":")
    message = f"There is no device {name!r} here; there is {listed}"
    known = set(names)
    if kind in known and index:
        variable = _visible_variable(kind)
        counted = f"{variable} is {os.environ[variable]!r}: " if variable else ""
        hint: str | None = f"{counted}torch counts the devices that it sees from 0."
    elif absence := _find_absence(kind):
        message += f", since {absence.reason}"
        hint = f"{absence.fix} {_OTHERWISE}"
    else:
        hint = suggest_name(name, sorted(known)).strip() or None
    return InputError(f"{message}.", hint=hint, field="device")


def require_requested_gpu() -> None:
    """Raise InputError if the environment asks for a GPU; called where torch has none."""
    for variable, kind in _requesting_variables():
        absence = _find_absence(kind)
        if absence is None:
            continue
        raise InputError(
            f"{variable} is {os.environ[variable]!r}, and torch can use no GPU here, since "
            f"{absence.reason}.",
            hint=f"{absence.fix} {_OTHERWISE}",
            field="device",
        )


def find_unused_gpu() -> Absence | None:
    """Why torch does not use the NVIDIA card of this machine; None without one, or if hidden.

    Called where torch has no GPU.
    """
    if not _has_card("cuda") or _is_hidden("cuda"):
        return None
    absence = _find_absence("cuda")
    return absence and Absence(
        reason=f"there is an NVIDIA GPU that torch cannot use, since {absence.reason}",
        fix=absence.fix,
    )


def tell_unused_gpu(kind: str, requested: str | None, on_event: OnEvent) -> None:
    """Tell that the CPU computes although there is an NVIDIA card, and what to do.

    `kind` is of the device that computes, `requested` the one that the user asked for.
    """
    if kind == "cpu" and requested is None and (absence := find_unused_gpu()):
        on_event(Notice(message=f"{absence.sentence} {absence.fix}"))


def _requesting_variables() -> list[tuple[str, str]]:
    """Variables that say that there is a GPU, or which one to use, with its kind."""
    wanted = [] if not os.environ.get(ACCELERATOR_VARIABLE) else [(ACCELERATOR_VARIABLE, "cuda")]
    if _GPU_MACHINE.match(os.environ.get(MACHINE_VARIABLE, "")):
        wanted.append((MACHINE_VARIABLE, "cuda"))
    for kind in _VISIBLE:
        variable = _visible_variable(kind)
        if variable is None or _is_hidden(kind):
            continue
        if kind == "rocm" and variable == "CUDA_VISIBLE_DEVICES" and not _is_built_for_rocm():
            continue
        wanted.append((variable, kind))
    return wanted


def _is_built_for_rocm() -> bool:
    import torch

    return torch.version.hip is not None


def _visible_variable(kind: str) -> str | None:
    return next((name for name in _VISIBLE.get(kind, ()) if name in os.environ), None)


def _is_hidden(kind: str) -> bool:
    variable = _visible_variable(kind)
    return variable is not None and not _NAMES_GPU.match(os.environ[variable])


def _has_card(kind: str) -> bool:
    return any(next(_ROOT.glob(pattern), None) for pattern in _FILES.get(kind, ()))


def _find_absence(kind: str) -> Absence | None:
    """Why torch has no device of the kind, None for a kind that is none."""
    import torch

    if kind == "mps":
        return _apple_absence()
    if kind not in _BUILDS:
        return None
    variable = _visible_variable(kind)
    builds = {
        "cuda": torch.version.cuda or torch.version.hip,
        "rocm": torch.version.hip,
        "xpu": getattr(torch.version, "xpu", None),
    }
    seen = kind not in _FILES or sys.platform != "linux" or _has_card(kind)
    if builds[kind] is None:
        also = "" if seen else f", on a machine that has an {_MAKERS[kind]} GPU"
        return Absence(
            reason=f"this build of torch ({torch.__version__}) is not for {_BUILDS[kind]}",
            fix=f"Install torch for {_BUILDS[kind]}{also}: {_INSTALL}.",
        )
    if variable and _is_hidden(kind):
        return Absence(
            reason=f"{variable} is {os.environ[variable]!r}, which hides every GPU",
            fix=f"Unset {variable}, or name a GPU in it.",
        )
    if not seen:
        return Absence(
            reason=f"no {_MAKERS[kind]} GPU is to be seen",
            fix="A container sees one only if it is started with it (docker run --gpus all).",
        )
    return _driver_absence(kind, variable)


def _driver_absence(kind: str, variable: str | None) -> Absence:
    """Why a build of torch for the kind has no device of it: what its start says."""
    import torch

    said = "torch finds none"
    with libraries.suppress_warnings():
        try:
            (torch.xpu if kind == "xpu" else torch.cuda).init()
        except Exception as error:  # noqa: BLE001 - told; drivers' libraries raise anything
            said = error_reason(error).rstrip(".")
    if "too old" in said:
        return Absence(
            reason=f"its driver is too old for torch {torch.__version__}: {said}",
            fix=f"Update the {_MAKERS[kind]} driver, or install torch for an older one: "
            f"{_INSTALL}.",
        )
    if variable:
        return Absence(
            reason=f"{variable} is {os.environ[variable]!r} and torch finds no such GPU: {said}",
            fix=f"Name one that there is (nvidia-smi -L lists NVIDIA's), or unset {variable}.",
        )
    return Absence(
        reason=f"its driver does not start: {said}",
        fix=f"See that the {_MAKERS[kind]} driver works (nvidia-smi), then try again."
        if kind == "cuda"
        else f"See that the {_MAKERS[kind]} driver works, then try again.",
    )


def _apple_absence() -> Absence:
    import torch

    if sys.platform != "darwin":
        return Absence(reason="MPS is for Apple's GPUs", fix="Choose a device of this machine.")
    if not torch.backends.mps.is_built():
        return Absence(
            reason=f"this build of torch ({torch.__version__}) is not for MPS",
            fix=f"Install torch for macOS: {_INSTALL}.",
        )
    return Absence(
        reason="MPS needs an Apple GPU and macOS 14 or newer", fix="Choose another device."
    )
