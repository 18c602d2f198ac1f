"""The classes that a model's folder names: only what is a component of a pipeline is taken.

A model_index.json comes from outside. diffusers imports what it names, and looks up classes among
all that a library holds.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from t2i_cli.errors import ModelError
from t2i_cli.models import diffusers_folder, libraries
from t2i_cli.models.diffusers_folder import Component
from t2i_cli.models.lazy_imports import defer_imports
from t2i_cli.models.libraries import LibraryObject

_LIBRARIES = ("diffusers", "transformers")
_NOT_TAKEN = {"DiffusionPipeline", "OnnxRuntimeModel"}
"""What diffusers loads as a component as well: a whole pipeline, whose own model_index.json nobody
has checked, and networks that are not kept as safetensors."""


def check_components(folder: Path, *, trust_remote_code: bool) -> None:
    """Raise ModelError if the folder names what is no component, or code of its own untrusted.

    Nothing that the folder names is imported before all the names are known to be harmless.
    """
    libraries.import_diffusers()
    parts = diffusers_folder.list_components(folder)
    for part in parts:
        _check_names(folder, part)
        if _is_own_code(folder, part):
            if not trust_remote_code:
                raise custom_code_error(folder, f"{part.name}/{part.library}.py")
        elif part.library not in _LIBRARIES and _pipelines(part) is None:
            raise _refusal(folder, part)
    with libraries.suppress_warnings(), libraries.pause_gc(), defer_imports():
        for part in parts:
            if not _is_own_code(folder, part):
                _class(folder, part)


def load_tokenizers(
    folder: Path, names: set[str], *, trust_remote_code: bool
) -> Iterator[tuple[str, LibraryObject]]:
    """Those of the named components that are tokenizers and processors of transformers, loaded.

    diffusers would load them without passing on whether the model's own code may run; transformers
    then asks the terminal.
    """
    import transformers

    kinds = (transformers.PreTrainedTokenizerBase, transformers.ProcessorMixin)
    for part in diffusers_folder.list_components(folder):
        if part.name not in names or part.library != "transformers" or _is_own_code(folder, part):
            continue
        if issubclass(found := _class(folder, part), kinds):
            yield (
                part.name,
                found.from_pretrained(
                    str(folder / part.name),
                    local_files_only=True,
                    trust_remote_code=trust_remote_code,
                ),
            )


def custom_code_error(folder: Path, what: str) -> ModelError:
    """The refusal to run a model's own code."""
    return ModelError(
        f"The model in {folder} runs code of its own ({what}).",
        hint="If you trust it, --trust-remote-code lets it.",
    )


def _check_names(folder: Path, part: Component) -> None:
    if not all(isinstance(n, str) and n.isidentifier() and n[0] != "_" for n in part):
        raise _refusal(folder, part)


def _is_own_code(folder: Path, part: Component) -> bool:
    """Whether diffusers would take the class from a Python file in the component's folder."""
    return (folder / part.name / f"{part.library}.py").is_file() and _pipelines(part) is None


def _class(folder: Path, part: Component) -> LibraryObject:
    """The class of a component, from diffusers or transformers. Raises ModelError."""
    from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj

    try:
        # It knows the names that transformers' classes had once.
        found = simple_get_class_obj(part.library, part.cls)
        bases = tuple(_bases())
    except (AttributeError, ImportError, RuntimeError, ValueError):  # lazy modules raise all
        raise _refusal(folder, part) from None
    if missing := getattr(found, "_backends", None):  # a stand-in for what is not installed
        raise ModelError(
            f"The {part.name} of the model in {folder}, {part.cls}, needs {', '.join(missing)} "
            "installed."
        )
    if not inspect.isclass(found) or not issubclass(found, bases):
        raise _refusal(folder, part)
    return found


def _bases() -> Iterator[LibraryObject]:
    """The classes that components are children of, as diffusers lists them."""
    import diffusers
    import transformers
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    for library in (diffusers, transformers):
        for name in LOADABLE_CLASSES[library.__name__].keys() - _NOT_TAKEN:
            yield getattr(library, name)


def _pipelines(part: Component) -> ModuleType | None:
    """The package in diffusers of a pipeline that brings the component (a safety checker, say)."""
    from diffusers import pipelines

    try:
        found = getattr(pipelines, part.library, None)
    except (ImportError, RuntimeError):
        return None
    return found if isinstance(found, ModuleType) else None


def _refusal(folder: Path, part: Component) -> ModelError:
    return ModelError(
        f"The model in {folder} names {part.library}.{part.cls} as its {part.name}, which is no "
        "component of diffusers or transformers.",
        hint="Nothing of it was run. The model is damaged, or is not what it says.",
    )
