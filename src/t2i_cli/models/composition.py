"""Puts a model together from a base folder and parts that lie elsewhere, as a diffusers folder.

The folder holds links: nothing is copied but configs that change. So all that describes, plans or
loads a diffusers folder does the same with a single file, or with another VAE. Which parts are read
from single files stands in a file beside its model_index.json; `models/sources.py` reads it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from t2i_cli.errors import StorageError, os_reason
from t2i_cli.files import weight_files
from t2i_cli.model_spec import Composition, PartOverride
from t2i_cli.models import checkpoint_file, diffusers_folder, single_file_classes, sources
from t2i_cli.models.composed_root import COMPOSITION, composed_root
from t2i_cli.models.sources import Part

_TRANSFORMERS_WEIGHTS = "model.safetensors"
_DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"


def compose_folder(composition: Composition, base: Path) -> Path:
    """The diffusers folder of a composition whose base lies in a folder.

    It is made once for the same content. Raises ModelError, StorageError.
    """
    base = Path(os.path.abspath(base))
    contents = _contents(composition, base)
    key = hashlib.sha256(json.dumps(sorted(contents.items())).encode()).hexdigest()[:16]
    root = composed_root()
    folder = root / key
    if os.path.isfile(folder / COMPOSITION):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=root, prefix=".new-"))
        try:
            _write(made, contents)
            with suppress(OSError):  # another process has made it
                made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"Cannot put a model together in {root}: {os_reason(error)}.") from error
    return folder


def _contents(composition: Composition, base: Path) -> dict[str, str]:
    """What the folder holds: paths in it, with "=" and a text, or ">" and what a link leads to."""
    index = dict(diffusers_folder.read_model_index(base))
    for name in composition.left_out:
        index[name] = [None, None]
    if "safety_checker" in composition.left_out:
        index["requires_safety_checker"] = False
    overrides = {each.part: each for each in composition.overrides}
    found: dict[str, str] = {}
    files: dict[str, dict[str, object]] = {}
    for part in sources.list_parts(base):
        override = overrides.get(part.name)
        if part.name in composition.left_out:
            continue
        if override is None:
            if part.name == "scheduler" and composition.scheduler:
                found |= _scheduler(part, dict(composition.scheduler))
            elif os.path.isdir(part.folder):
                found[part.name] = f">{part.folder}"
        elif os.path.isdir(override.path):
            found[part.name] = f">{os.path.abspath(override.path)}"
            index[part.name] = [part.library, _class_of(override, part)]
        else:
            for path in diffusers_folder.folder_entries(part.folder):
                if not weight_files.is_weights(path.name):
                    found[f"{part.name}/{path.name}"] = f">{path}"
            if loads_single_file(part, override):
                files[part.name] = {
                    "file": os.path.abspath(override.path),
                    "whole": override.whole,
                }
            else:
                weights = (
                    _TRANSFORMERS_WEIGHTS if part.library == "transformers" else _DIFFUSERS_WEIGHTS
                )
                found[f"{part.name}/{weights}"] = f">{os.path.abspath(override.path)}"
    for path in diffusers_folder.folder_entries(base):
        if path.suffix == ".py":
            found[path.name] = f">{path}"
    found["model_index.json"] = f"={json.dumps(index, indent=2)}"
    content = {"base": str(base), "files": files}
    found[COMPOSITION] = f"={json.dumps(content, indent=2)}"
    return found


def loads_single_file(part: Part, override: PartOverride) -> bool:
    """Whether the part is made from a file by conversions of names and formats.

    Of other files the tensors are named as the libraries name them.
    """
    if override.whole or part.library == "diffusers":
        return override.whole or single_file_classes.is_converted(part)
    return checkpoint_file.read_checkpoint(override.path).quantization is not None


def _class_of(override: PartOverride, part: Part) -> str:
    """The class that an override's config names: a small VAE is of another than the model's."""
    config = diffusers_folder.component_config(override.path.parent, override.path.name)
    name = config.get("_class_name")
    return name if isinstance(name, str) and name.isidentifier() else part.cls


def _scheduler(part: Part, changes: dict[str, str]) -> dict[str, str]:
    config = diffusers_folder.component_config(part.folder.parent, part.name)
    values = {key: json.loads(value) for key, value in changes.items()}
    return {"scheduler/scheduler_config.json": f"={json.dumps(config | values, indent=2)}"}


def _write(folder: Path, contents: dict[str, str]) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if content.startswith("="):
            path.write_text(content[1:], encoding="utf-8")
        else:
            path.symlink_to(content[1:])
