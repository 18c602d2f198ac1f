"""Writes `model.mar`, the archive that TorchServe in Google's PyTorch containers loads.

The format is torch-model-archiver's: a zip file with MAR-INF/MANIFEST.json.
"""

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

from t2i_cli.errors import InputError, StorageError, os_reason
from t2i_cli.files import atomic
from t2i_cli.files.state_files import MAX_STATE_BYTES, free_or_own_path, parse_json
from t2i_cli.vertex.model_source import ModelSource
from t2i_cli.vertex.torchserve.container import ARCHIVE, MANIFEST

HANDLER = Path(__file__).with_name("handler.py")

_REQUIREMENTS = "diffusers\ntransformers\naccelerate\nsafetensors\n"
_ENTRY_DATE = (1980, 1, 1, 0, 0, 0)
"""A constant date for every entry, so that archives are reproducible."""


def check_archive_path(folder: Path, *, overwrite: bool) -> Path:
    """The archive's path in the folder; raises InputError if something is there.

    With `overwrite`, an archive that t2i packed may be there, and nothing else.
    """
    target = folder / ARCHIVE
    if not os.path.lexists(target):
        return target
    if free_or_own_path([target], is_own_archive) is None:
        raise InputError(
            f"'{target}' is there, and none that t2i packed.",
            hint="Move it away, or give another folder with -o.",
        )
    if not overwrite:
        raise InputError(
            f"'{target}' is there already.",
            hint="--overwrite replaces it; -o names another folder.",
        )
    return target


def write_archive(
    source: ModelSource,
    weights: Path,
    folder: Path,
    on_bytes: Callable[[int, int], None],
    *,
    overwrite: bool = False,
) -> Path:
    """Write the handler and a diffusers folder into an archive, atomically.

    `on_bytes` takes the bytes done and the total. Raises InputError as `check_archive_path`, and
    StorageError.
    """
    if not (weights / "model_index.json").is_file():
        raise InputError(f"{weights} is not a diffusers folder: it has no model_index.json.")
    target = check_archive_path(folder, overwrite=overwrite)
    files = sorted(path for path in weights.rglob("*") if path.is_file())
    total, done = sum(path.stat().st_size for path in files), 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not compressed: weights do not compress.
        with (
            atomic.open_atomic(target, exclusive=not overwrite) as whole,
            zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive,
        ):
            texts = {
                MANIFEST: json.dumps(_manifest(source.label_name), indent=1),
                HANDLER.name: HANDLER.read_text(encoding="utf-8"),
                "requirements.txt": _REQUIREMENTS,
            }
            for name, text in texts.items():
                archive.writestr(zipfile.ZipInfo(name, _ENTRY_DATE), text)
            for path in files:
                entry = zipfile.ZipInfo(
                    f"weights/{path.relative_to(weights).as_posix()}", _ENTRY_DATE
                )
                entry.file_size = path.stat().st_size
                with path.open("rb") as inside, archive.open(entry, "w") as outside:
                    while piece := inside.read(2**20):
                        outside.write(piece)
                        done += len(piece)
                        on_bytes(done, total)
    except FileExistsError as error:
        raise InputError(f"'{target}' appeared meanwhile, and stays.") from error
    except OSError as error:
        raise StorageError(f"Cannot write {target}: {os_reason(error)}.") from error
    return target


def is_own_archive(archive: Path) -> bool:
    """Whether t2i wrote the archive, of whichever model."""
    try:
        with zipfile.ZipFile(archive) as packed:
            entry = packed.getinfo(MANIFEST)
            # t2i compresses nothing, and each decompressor raises errors of its own.
            if entry.file_size > MAX_STATE_BYTES or entry.compress_type != zipfile.ZIP_STORED:
                return False
            found = parse_json(packed.read(MANIFEST))
    except (OSError, ValueError, LookupError, RuntimeError, EOFError, struct.error, BadZipFile):
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
