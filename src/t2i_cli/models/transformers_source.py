"""Find a class of transformers in the source files of its models, by the library's naming rules.

transformers reads the 2,000 files of its models for their names when it is imported. The folder of
a model is the beginning of its classes' names, and the kind of a class its end.
"""

import ast
import importlib.metadata
import operator
from functools import cache
from pathlib import Path

from t2i_cli.models import library_source
from t2i_cli.models.library_source import SourceClass

_FILES = (
    ("Tokenizer", "tokenization_"),
    ("TokenizerFast", "tokenization_"),
    ("ImageProcessorPil", "image_processing_pil_"),
    ("FeatureExtractor", "feature_extraction_"),
    ("ImageProcessor", "image_processing_"),
    ("Processor", "processing_"),
    ("", "modeling_"),
)
"""The end of a class's name, and the beginning of the names of the files that it may be in."""
_RENAMED = ("diffusers.utils.deprecation_utils", "_TRANSFORMERS_CLASS_REMAPPING")
_COMPARISONS = {">": operator.gt, ">=": operator.ge}


def find_model_class(name: str) -> SourceClass | None:
    """The class that `transformers.<name>` is, after diffusers' renaming; `None` if unknown."""
    current = _current_name(name)
    if current is None:
        return None
    found = library_source.find_class("transformers", current) or _find_exported(current)
    if found is None and current.endswith("TokenizerFast"):
        # Tokenizers have one class since transformers 5; its module takes the former name, too.
        return _find_exported(current.removesuffix("Fast"))
    if current.endswith("ImageProcessor") and (found is None or _needs_torchvision(found)):
        if not library_source.package_is_installed("torchvision"):
            return _find_exported(f"{current}Pil")
    return found


def _current_name(name: str) -> str | None:
    """The name after diffusers' renaming of former classes; `None` if that is not known."""
    try:
        renamed = library_source.constant(*_RENAMED)
    except ValueError:
        return None
    entry = renamed.get(name) if isinstance(renamed, dict) else None
    if entry is None:
        return name
    from packaging.version import Version

    comparison, version = entry["transformers_version"]
    installed = Version(importlib.metadata.version("transformers"))
    if comparison not in _COMPARISONS:
        return None
    return (
        str(entry["new_class"]) if _COMPARISONS[comparison](installed, Version(version)) else name
    )


def _find_exported(name: str) -> SourceClass | None:
    prefixes = [files for end, files in _FILES if name.endswith(end)]
    for folder in _model_folders(name):
        for file in (each for prefix in prefixes for each in sorted(folder.glob(f"{prefix}*.py"))):
            if f"\nclass {name}(".encode() not in file.read_bytes():
                continue
            module = f"transformers.models.{folder.name}.{file.stem}"
            found = library_source.find_class(module, name)
            return found if found and _is_exported(found) else None
    return None


def _model_folders(name: str) -> list[Path]:
    """The folders of models whose names begin a class's name, the longest first."""
    beginning = name.lower().replace("_", "")
    return [folder for joined, folder in _joined_names() if beginning.startswith(joined)]


@cache
def _joined_names() -> list[tuple[str, Path]]:
    package = library_source.package_folder("transformers")
    folders = [] if package is None else [f for f in (package / "models").iterdir() if f.is_dir()]
    return sorted(
        ((folder.name.replace("_", ""), folder) for folder in folders),
        key=lambda pair: (-len(pair[0]), pair[0]),
    )


def _is_exported(found: SourceClass) -> bool:
    """Whether its module exports the class, and it needs no package that is not installed."""
    try:
        names = library_source.constant(found.module, "__all__")
    except ValueError:
        return False
    decorators = found.node.decorator_list if found.node else []
    calls = [each for each in decorators if isinstance(each, ast.Call)]
    needed = {
        part.value
        for call in calls
        if ast.unparse(call.func) == "requires"
        for part in ast.walk(call)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    }
    exported = isinstance(names, list) and found.name in names
    return exported and all(map(_is_backend_installed, needed))


def _is_backend_installed(backend: str) -> bool:
    return library_source.package_folder("PIL" if backend == "vision" else backend) is not None


def _needs_torchvision(found: SourceClass) -> bool:
    bases = found.node.bases if found.node else []
    return any(ast.unparse(base) == "TorchvisionBackend" for base in bases)
