"""`model.mar`: the archive that TorchServe in Google's PyTorch containers runs.

Its form is torch-model-archiver's: a zip file with MAR-INF/MANIFEST.json.
"""

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from t2i_cli.errors import InputError, StorageError, os_reason
from t2i_cli.files import atomic
from t2i_cli.files.state_files import MAX_STATE_BYTES, free_or_own_path, parse_json
from t2i_cli.vertex.model_source import ModelSource
from t2i_cli.vertex.torchserve.container import ARCHIVE, MANIFEST

HANDLER = Path(__file__).with_name("handler.py")

_REQUIREMENTS = "diffusers\ntransformers\naccelerate\nsafetensors\n"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The date of every entry: the same model makes the same bytes."""


def write_archive(
    source: ModelSource, weights: Path, folder: Path, on_bytes: Callable[[int, int], None]
) -> Path:
    """Put the handler and a diffusers folder into an archive, whole or not at all.

    Raises InputError where another's archive has its name, and StorageError.
    """
    if not (weights / "model_index.json").is_file():
        raise InputError(f"{weights} is not a diffusers folder: it has no model_index.json.")
    target = folder / ARCHIVE
    if free_or_own_path([target], is_own_archive) is None:
        raise InputError(
            f"'{target}' is there, and none that t2i packed.",
            hint="Move it away, or give another folder with -o.",
        )
    files = sorted(path for path in weights.rglob("*") if path.is_file())
    total, done = sum(path.stat().st_size for path in files), 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Weights do not get smaller by compression.
        with (
            atomic.open_atomic(target) as whole,
            zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive,
        ):
            texts = {
                MANIFEST: json.dumps(_manifest(source.label_name), indent=1),
                HANDLER.name: HANDLER.read_text(encoding="utf-8"),
                "requirements.txt": _REQUIREMENTS,
            }
            for name, text in texts.items():
                archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), text)
            for path in files:
                entry = zipfile.ZipInfo(
                    f"weights/{path.relative_to(weights).as_posix()}", _LONG_AGO
                )
                entry.file_size = path.stat().st_size
                with path.open("rb") as inside, archive.open(entry, "w") as outside:
                    while piece := inside.read(2**20):
                        outside.write(piece)
                        done += len(piece)
                        on_bytes(done, total)
    except OSError as error:
        raise StorageError(f"Cannot write {target}: {os_reason(error)}.") from error
    return target


def is_own_archive(archive: Path) -> bool:
    """Whether an archive is one that t2i packed, whichever model it holds."""
    try:
        with zipfile.ZipFile(archive) as packed:
            if packed.getinfo(MANIFEST).file_size > MAX_STATE_BYTES:
                return False
            found = parse_json(packed.read(MANIFEST))
    except (OSError, ValueError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False
    model = found.get("model") if isinstance(found, dict) else None
    return isinstance(model, dict) and found == _manifest(str(model.get("description")))


def _manifest(model: str) -> dict[str, object]:
    return {
        "runtime": "python",
        "model": {
            "modelName": "model",
            "modelVersion": "1.0",
            "description": model,
            "handler": HANDLER.name,
            "requirementsFile": "requirements.txt",
        },
        "archiverVersion": "0.12.0",
    }
