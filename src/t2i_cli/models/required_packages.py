"""Packages that a model needs and that are not installed, before it is downloaded or loaded.

The libraries import many packages only where they are installed, and fail later for want of them,
at times after the weights are loaded. What a class needs is read from their source.
"""

import ast
import importlib.metadata
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from t2i_cli.errors import ModelError
from t2i_cli.models import class_facts, library_source, saved_quantization, sources
from t2i_cli.models.library_source import SourceClass
from t2i_cli.models.sources import Part

_INSTALLED_AS = {
    "bs4": "beautifulsoup4",
    "google.protobuf": "protobuf",
    "modelopt": "nvidia-modelopt",
    "optimum.quanto": "optimum-quanto",
}
"""The names of packages by the names that are imported, where they differ."""
_IMPORTED_AS = {
    "protobuf": "google.protobuf",
    "optimum_quanto": "optimum.quanto",
    "quanto": "optimum.quanto",
    "opencv": "cv2",
    "vision": "PIL",
}
"""Imported names by the libraries' names of what they ask for (`is_quanto_available`)."""
_QUANTIZERS = {
    "bitsandbytes": "bitsandbytes",
    "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes",
    "torchao": "torchao",
    "quanto": "optimum.quanto",
    "gguf": "gguf",
    "modelopt": "modelopt",
    "sdnq": "sdnq",
    "auto-round": "auto_round",
    "compressed-tensors": "compressed_tensors",
    "gptq": "gptqmodel",
    "hqq": "hqq",
}
"""Imported names by a config's `quant_method`."""
_IN_EXTRA = {
    "beautifulsoup4",
    "bitsandbytes",
    "ftfy",
    "optimum-quanto",
    "protobuf",
    "sentencepiece",
    "torchao",
}
"""The packages of the extra `families`."""
_ASKS = re.compile(r"is_(\w+)_available")
_BUILD = re.compile(r"\+(cpu|cu\d+|rocm[\d.]+|xpu)$")
_INDEX = "https://download.pytorch.org/whl/"


def check_packages(folder: Path, pipeline: str) -> None:
    """Raise ModelError if the pipeline or a part of it needs a package that is not installed."""
    needed: dict[str, str] = dict.fromkeys(missing_for_class("diffusers", pipeline), pipeline)
    for part in sources.list_parts(folder):
        for package in _part_packages(part):
            needed.setdefault(package, f"{pipeline}'s {part.name}")
    missing = [name for name in needed if library_source.package_folder(name) is None]
    if missing:
        names = [_INSTALLED_AS.get(name, name) for name in missing]
        raise ModelError(
            f"{needed[missing[0]]} needs {' and '.join(names)}, which "
            f"{'is' if len(names) == 1 else 'are'} not installed.",
            hint=" ".join(dict.fromkeys(map(install_hint, names))),
        )


def install_hint(package: str) -> str:
    """How to install a package beside this torch."""
    if package == "torchvision":
        build = _BUILD.search(importlib.metadata.version("torch"))
        index = f" --index-url {_INDEX}{build[1]}" if build else ""
        return f"`pip install torchvision{index}` brings the one that matches torch."
    if package == "gguf":
        return "`pip install 't2i-cli[gguf]'` brings it."
    if package in _IN_EXTRA:
        return "`pip install 't2i-cli[families]'` brings it."
    return f"`pip install {package}` brings it."


def torchvision_mismatch() -> str | None:
    """Why the installed torchvision does not fit the installed torch; `None` if it does.

    A build for GPUs beside a torch for CPUs breaks every import of transformers and diffusers.
    """
    try:
        torch, vision = map(importlib.metadata.version, ("torch", "torchvision"))
        wanted = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    builds = [match[1] if match else "" for match in map(_BUILD.search, (torch, vision))]
    if builds[0] != builds[1]:
        return f"torchvision {vision} is another build than torch {torch}"
    pinned = [match for each in wanted if (match := re.match(r"torch *\(?== *([\d.]+)", each))]
    if pinned and pinned[0][1] != torch.partition("+")[0]:
        return f"torchvision {vision} is for torch {pinned[0][1]}, and torch is {torch}"
    return None


@cache
def missing_for_class(library: str, name: str) -> tuple[str, ...]:
    """The packages, by imported names, that a class of the libraries needs and that are missing."""
    cls = class_facts.component_class(library, name)
    found = []
    if cls is None and library != "transformers":
        found += [_IMPORTED_AS.get(each, each) for each in _stand_in_backends(name)]
    if cls is not None:
        for each in class_facts.library_ancestry(cls):
            found += _declared(each)
            found += _conditional_imports(each.module)
        if library == "transformers" and "video_processor" in _constructor_names(cls):
            # ProcessorMixin loads one for each such parameter.
            base = library_source.find_class(
                "transformers.video_processing_utils", "BaseVideoProcessor"
            )
            found += _declared(base) if base else ()
    return tuple(
        name for name in dict.fromkeys(found) if library_source.package_folder(name) is None
    )


def _part_packages(part: Part) -> Iterator[str]:
    if isinstance(part.library, str) and isinstance(part.cls, str):
        yield from missing_for_class(part.library, part.cls)
    method = saved_quantization.saved_method(part)
    if method in _QUANTIZERS:
        yield _QUANTIZERS[method]
    names = part.file_names()
    if "tokenizer.json" not in names and any(name.endswith(".model") for name in names):
        # transformers makes a tokenizer of it by both.
        yield from ("sentencepiece", "google.protobuf")


def _declared(cls: SourceClass) -> list[str]:
    """What transformers' decorator `@requires(backends=...)` names."""
    calls = (
        [each for each in cls.node.decorator_list if isinstance(each, ast.Call)]
        if (cls.node)
        else []
    )
    names = [
        part.value
        for call in calls
        if ast.unparse(call.func) == "requires"
        for part in ast.walk(call)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    return [_IMPORTED_AS.get(name, name) for name in names]


def _constructor_names(cls: SourceClass) -> set[str]:
    _, node = library_source.find_attribute(cls, "__init__") or (None, None)
    return {each.arg for each in node.args.args} if isinstance(node, ast.FunctionDef) else set()


def _conditional_imports(module_name: str) -> list[str]:
    """What a module imports only if it is installed, but uses whether or not.

    It asks once, above the import. A module that can do without asks again where it matters, or
    keeps the answer.
    """
    module = library_source.read_module(module_name)
    if module is None:
        return []
    used = [node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name)]
    found = []
    for statement in module.tree.body:
        if not isinstance(statement, ast.If) or not isinstance(statement.test, ast.Call):
            continue
        question = ast.unparse(statement.test.func)
        asked = _ASKS.fullmatch(question)
        imports = [each for each in statement.body if isinstance(each, ast.Import | ast.ImportFrom)]
        answers = any(isinstance(each, ast.Assign) for each in [*statement.body, *statement.orelse])
        if not asked or len(imports) < len(statement.body) or answers:
            continue
        names = {alias.asname or alias.name for each in imports for alias in each.names}
        if used.count(question) == 1 and names & set(used):
            found.append(_IMPORTED_AS.get(asked[1], asked[1]))
    return found


def _stand_in_backends(name: str) -> tuple[str, ...]:
    """The packages without which diffusers has a stand-in for a class, by their names there."""
    folder = library_source.package_folder("diffusers")
    for file in sorted((folder / "utils").glob("dummy_*.py")) if folder else ():
        if f"class {name}(".encode() not in file.read_bytes():
            continue
        found = library_source.find_class(f"diffusers.utils.{file.stem}", name)
        _, statement = (found and library_source.find_attribute(found, "_backends")) or (None, None)
        if isinstance(statement, ast.Assign):
            return tuple(ast.literal_eval(statement.value))
    return ()
