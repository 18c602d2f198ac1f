"""Check the classes that a model folder names: only known pipeline components are loaded.

A model_index.json is untrusted input: diffusers imports the modules that it names, and looks up its
classes among everything in a library.
"""

import inspect
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from t2i_cli.errors import ModelError
from t2i_cli.files.state_files import is_text
from t2i_cli.models import class_facts, diffusers_folder, libraries, library_source, sources
from t2i_cli.models.class_facts import PipelineFacts
from t2i_cli.models.lazy_imports import defer_imports
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.sources import Part

_LIBRARIES = ("diffusers", "transformers")
_MAX_NAME = 100
"""Characters of the name of a component, class or module."""
_LATER_ENCODER = re.compile(r"_\d$")


def check_part_names(folder: Path) -> None:
    """Raise ModelError for a part whose name, library or class can be none; reads the index only.

    The names become paths and modules: this comes before anything else is read of the parts.
    """
    for component in sources.list_parts(folder):
        _check_names(folder, component)


def check_components(folder: Path, *, trust_remote_code: bool) -> None:
    """Raise ModelError if the folder names a class that is no component, or untrusted own code.

    Imports no library where its source proves that each class is a component.
    """
    components = sources.list_parts(folder)
    _check_files(folder, components)
    if library_source.is_readable() and all(
        _is_proven_component(folder, component) for component in components
    ):
        return
    check_imported_components(folder, trust_remote_code=trust_remote_code)


def check_imported_components(folder: Path, *, trust_remote_code: bool) -> None:
    """Raise ModelError as `check_components` does, and import the components' classes.

    Nothing that the folder names is imported before all its names have been checked.
    """
    components = sources.list_parts(folder)
    _check_files(folder, components)
    libraries.import_diffusers()
    for component in components:
        _check_names(folder, component)
        if not trust_remote_code and _names_kernel(folder, component):
            raise custom_code_error(folder, f"an attention kernel of {component.name}")
        if _is_custom_code(folder, component):
            if not trust_remote_code:
                raise custom_code_error(folder, f"{component.name}/{component.library}.py")
        elif component.library not in _LIBRARIES and _pipeline_package(component) is None:
            raise _not_a_component_error(folder, component)
    with libraries.suppress_warnings(), libraries.pause_gc(), defer_imports():
        for component in components:
            if not _is_custom_code(folder, component):
                import_component_class(folder, component)


def check_complete(folder: Path, facts: PipelineFacts) -> None:
    """Raise ModelError if the folder lacks a component without which the pipeline makes nothing.

    Second and later encoders are optional: there are copies of SD 3 without its third.
    """
    present = {component.name for component in sources.list_parts(folder)}
    for name, parameter in facts.init.items():
        if (
            name != "self"
            and parameter.default is parameter.empty
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            and name not in present | facts.optional_components
            and not _LATER_ENCODER.search(name)
        ):
            raise ModelError(
                f"The model in {folder} is damaged: its model_index.json names no {name}, which "
                f"{facts.name} needs."
            )


def load_tokenizers(
    folder: Path, names: set[str], *, trust_remote_code: bool
) -> Iterator[tuple[str, LibraryObject]]:
    """Load those of the named components that are tokenizers or processors of transformers.

    diffusers would load them without passing `trust_remote_code` on; transformers then prompts on
    the terminal.
    """
    import transformers

    classes = (transformers.PreTrainedTokenizerBase, transformers.ProcessorMixin)
    for component in sources.list_parts(folder):
        if (
            component.name not in names
            or component.library != "transformers"
            or _is_custom_code(folder, component)
        ):
            continue
        if issubclass(cls := import_component_class(folder, component), classes):
            yield (
                component.name,
                cls.from_pretrained(
                    str(component.folder),
                    local_files_only=True,
                    trust_remote_code=trust_remote_code,
                ),
            )


def custom_code_error(folder: Path, what: str) -> ModelError:
    """The error for a model that needs its own code, which the user has not trusted."""
    return ModelError(
        f"The model in {folder} runs code of its own ({what}).",
        hint="If you trust it, --trust-remote-code lets it.",
    )


def _check_names(folder: Path, component: Part) -> None:
    if not all(map(_is_safe_name, component[:3])):
        raise _not_a_component_error(folder, component)


def _check_files(folder: Path, components: Iterable[Part]) -> None:
    """Raise ModelError for a pipe, socket or device, from which a library would read for ever."""
    folders = [folder, *(part.folder for part in components if _is_safe_name(part.name))]
    for path in (path for each in folders for path in diffusers_folder.folder_entries(each)):
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            raise ModelError(f"{path} is no regular file, so it is no part of a model.")


def _is_safe_name(name: object) -> bool:
    """Whether it can be the name of a component: an identifier that does not begin with `_`."""
    return is_text(name, _MAX_NAME) and name.isidentifier() and name[0] != "_"


def _is_proven_component(folder: Path, component: Part) -> bool:
    """Whether it needs no code but the libraries', by their source."""
    return (
        all(map(_is_safe_name, component[:3]))
        and not _names_kernel(folder, component)
        and not os.path.isfile(component.folder / f"{component.library}.py")
        and class_facts.is_known_component(component.library, component.cls)
    )


def _names_kernel(folder: Path, component: Part) -> bool:
    """Whether its config has transformers fetch an attention kernel: compiled code of the Hub."""
    if component.library != "transformers":
        return False
    values: list[object] = [diffusers_folder.component_config(folder, component.name)]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                if "attn_implementation" in key and "/" in str(inner):
                    return True
            values += value.values()
        elif isinstance(value, list):
            values += value
    return False


def _is_custom_code(folder: Path, component: Part) -> bool:
    """Whether diffusers would load the class from a Python file in the component's folder."""
    file = component.folder / f"{component.library}.py"
    return os.path.isfile(file) and _pipeline_package(component) is None


def import_component_class(folder: Path, component: Part) -> LibraryObject:
    """Import a component's class from diffusers or transformers. Raises ModelError."""
    from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj

    try:
        # It maps former names of transformers' classes to the current ones.
        with libraries.naming_variables():
            cls = simple_get_class_obj(component.library, component.cls)
            bases = tuple(_component_bases())
    except (AttributeError, ImportError, RuntimeError, ValueError):  # of lazy modules
        raise _not_a_component_error(folder, component) from None
    if missing := getattr(cls, "_backends", None):  # a placeholder: dependencies are missing
        raise ModelError(
            f"The {component.name} of the model in {folder}, {component.cls}, "
            f"needs {', '.join(missing)} installed."
        )
    if not inspect.isclass(cls) or not issubclass(cls, bases):
        raise _not_a_component_error(folder, component)
    return cls


def _component_bases() -> Iterator[LibraryObject]:
    """The base classes of components, as diffusers lists them (`LOADABLE_CLASSES`)."""
    import diffusers
    import transformers
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    for library in (diffusers, transformers):
        for name in LOADABLE_CLASSES[library.__name__].keys() - class_facts.REFUSED_BASES:
            yield getattr(library, name)


def _pipeline_package(component: Part) -> ModuleType | None:
    """The diffusers.pipelines package that has the component (a safety checker, say), if any."""
    from diffusers import pipelines

    try:
        package = getattr(pipelines, component.library, None)
    except (ImportError, RuntimeError):
        return None
    return package if isinstance(package, ModuleType) else None


def _not_a_component_error(folder: Path, component: Part) -> ModelError:
    name, library, cls = (f"{value!s:.{_MAX_NAME}}" for value in component[:3])
    return ModelError(
        f"The model in {folder} names {library}.{cls} as its {name}, which is no component of "
        "diffusers or transformers.",
        hint="Nothing of it was run. The model is damaged, or is not what it says.",
    )
