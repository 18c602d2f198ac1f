"""What makes two runs want the same worker: model, options, version, user and environment."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from t2i_cli import __version__
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.models import catalog
from t2i_cli.settings import store

_PREFIXES = (
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DIFFUSERS_", "SAFETENSORS_", "ACCELERATE_"),
    *("TORCH", "PYTORCH_", "ATEN_", "TRITON_", "CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_"),
    *("HIP_", "ROCR_", "ROCM_", "HSA_", "MIOPEN_", "GPU_", "ZE_", "SYCL_", "ONEAPI_"),
    *("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "PYTHON", "LD_", "DYLD_", "MALLOC_"),
    *("SSL_", "REQUESTS_", "CURL_", "T2I_"),
)
_NAMES = {
    *("HOME", "USERPROFILE", "XDG_CACHE_HOME", "TMPDIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
}
"""Variables that the Hub's client, torch and the libraries below them read."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """The worker that a run wants; `model` as the user called it, or as the request names it."""

    model: str
    revision: str | None
    options: LocalOptions

    @property
    def folder(self) -> Path | None:
        """The model's folder, if it is in one."""
        if known := catalog.find_in_catalog(self.model):
            return known.folder
        return catalog.folder_named(self.model)

    def fingerprint(self) -> str:
        """A hash of everything that the images of a warm worker could depend on.

        Variables may hold secrets; nothing of them can be read from it.
        """
        known = catalog.find_in_catalog(self.model)
        folder = self.folder
        values = {
            "t2i": __version__,
            "python": [sys.executable, sys.version],
            "packages": list(_packages()),
            "user": os.getuid() if sys.platform != "win32" else os.environ.get("USERNAME"),
            "model": known.name if known else self.model,
            "revision": self.revision,
            "files": [str(folder.absolute()), *_files(folder)] if folder else None,
            "options": asdict(self.options),
            "environment": sorted(_environment()),
        }
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _environment() -> Iterator[tuple[str, str]]:
    # What the settings say has reached the options already.
    settled = {store.CONFIG_VARIABLE} | {s.variable for s in store.SETTINGS.values()}
    for name, value in os.environ.items():
        plain = name.upper()
        if (plain in _NAMES or plain.startswith(_PREFIXES)) and name not in settled:
            yield name, value


def _packages() -> Iterator[tuple[str, int]]:
    """Where packages lie; installing, upgrading or removing one changes the folder's time."""
    for path in sys.path:
        if path.endswith(("site-packages", "dist-packages")) and os.path.isdir(path):
            yield path, os.stat(path).st_mtime_ns


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """A model's files with their sizes and times: one that was trained anew is another."""
    if not (folder / "model_index.json").is_file():
        return []
    found = []
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            try:
                seen = os.stat(path)
            except OSError:
                continue
            found.append((path, seen.st_size, seen.st_mtime_ns))
    return sorted(found)
