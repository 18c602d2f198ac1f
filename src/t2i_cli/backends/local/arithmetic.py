"""How torch computes: number of threads, precision of products, choice of algorithms.

docs/reliability.md has what holds with --strict and without.
"""

import os
from types import ModuleType

from t2i_cli.backends.local.device import Device

STRICT_THREADS = 1
"""The only number of threads that each machine has: MKL takes no more than there are cores."""
_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_own_threads: int | None = None
"""torch's number of threads before it was changed here."""


def settle_arithmetic(*, strict: bool) -> None:
    """Set what torch's defaults and libraries would leave open, in this thread and process.

    Convolution algorithms are not chosen by timing them, which differs from run to run. Products of
    float32 matrices are exact to float32; convolutions may use TF32, torch's own default. `strict`
    has one thread on a CPU, and on a GPU only deterministic algorithms where there are any.
    """
    import torch

    _settle_threads(torch, strict=strict)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = strict
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = not strict
    if strict:
        # cuBLAS reads it when its first handle is made (docs.nvidia.com/cuda/cublas,
        # "Results reproducibility").
        os.environ.setdefault(_CUBLAS_WORKSPACE, ":4096:8")
        # An operation without a deterministic form still runs: an image is better than none.
        torch.use_deterministic_algorithms(True, warn_only=True)
    elif torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)


def thread_count(device: Device) -> int | None:
    """The number of threads that an image's bits depend on: torch's on a CPU, else `None`."""
    import torch

    return torch.get_num_threads() if device.kind == "cpu" else None


def _settle_threads(torch: ModuleType, *, strict: bool) -> None:
    global _own_threads  # noqa: PLW0603 - torch's number is one for the process
    if strict:
        if _own_threads is None:
            _own_threads = torch.get_num_threads()
        torch.set_num_threads(STRICT_THREADS)
    elif _own_threads is not None:
        torch.set_num_threads(_own_threads)
        _own_threads = None
