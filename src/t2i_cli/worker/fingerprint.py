"""Fingerprint of a worker: runs with equal fingerprints can share it."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from t2i_cli import __version__
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.files.user_paths import expand_home
from t2i_cli.library_environment import environment_of_children
from t2i_cli.models import bucket_models, catalog
from t2i_cli.part_source import PartSource
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
"""Environment variables that huggingface_hub, torch and their libraries read."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """The worker that a run needs; `model` is a name as `--model` or a request has it.

    `parts` are those that the model has from elsewhere, by the request's fields.
    """

    model: str
    revision: str | None
    options: LocalOptions
    parts: Mapping[str, PartSource] = field(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        """The model's folder, None for a model of the Hub."""
        if known := catalog.find_known(self.model):
            return known.folder
        return catalog.folder_named(self.model)

    @property
    def has_relative_paths(self) -> bool:
        """Whether the working directory decides what the model is."""
        names = [self.model, *(source.source for source in self.parts.values())]
        found = [name for name in names if os.path.exists(expand_home(name))]
        return any(not os.path.isabs(expand_home(name)) for name in found)

    def fingerprint(self) -> str:
        """SHA-256, in hex, of everything that a worker's images can depend on.

        Environment variables may hold secrets; the hash does not reveal them.
        """
        known = catalog.find_known(self.model)
        folder = self.folder
        values = {
            "t2i": __version__,
            "python": [sys.executable, sys.version],
            "packages": list(_packages()),
            "user": os.getuid() if sys.platform != "win32" else os.environ.get("USERNAME"),
            "model": known.name if known else self.model,
            "revision": self.revision,
            "files": [str(folder.absolute()), *_files(folder)] if folder else None,
            "file": _state_of_file(self.model),
            "copy": bucket_models.known_version(self.model),
            "parts": [
                (name, *source, _state_of_file(source.source))
                for name, source in sorted(self.parts.items())
            ],
            "options": asdict(self.options),
            "environment": sorted(_environment()),
        }
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _environment() -> Iterator[tuple[str, str]]:
    # Settings have reached the options already.
    settings = {store.CONFIG_VARIABLE} | {s.variable for s in store.SETTINGS.values()}
    for name, value in environment_of_children().items():
        upper = name.upper()
        if (upper in _NAMES or upper.startswith(_PREFIXES)) and name not in settings:
            yield name, value


def _packages() -> Iterator[tuple[str, int]]:
    """Package directories and their mtimes, which change when packages are installed or removed."""
    for path in sys.path:
        if path.endswith(("site-packages", "dist-packages")) and os.path.isdir(path):
            yield path, os.stat(path).st_mtime_ns


def _state_of_file(name: str) -> tuple[str, int, int] | None:
    """Path, size and mtime in ns of the file that a name may be the path of."""
    path = os.path.abspath(expand_home(name))
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return None
    return path, info.st_size, info.st_mtime_ns


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """Path, size in bytes and mtime in ns of a model's files: they change when it is retrained."""
    if not (folder / "model_index.json").is_file():
        return []
    found = []
    for directory, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(directory, name)
            try:
                info = os.stat(path)
            except OSError:
                continue
            found.append((path, info.st_size, info.st_mtime_ns))
    return sorted(found)
