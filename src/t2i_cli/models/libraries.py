"""Bringing in torch, transformers and diffusers: only what is needed, fast, and without noise."""

import gc
import inspect
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from t2i_cli.errors import ModelError
from t2i_cli.models.lazy_imports import defer_imports

LibraryObject = Any
"""An object of diffusers, transformers or torch, which come with few types or none."""


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Keep the libraries' warnings, which are for developers, off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def pause_gc() -> Iterator[None]:
    """Hold back garbage collection while many objects come to stay.

    The collector looks at all of them again and again: a fifth of the time to import diffusers.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def import_torch() -> ModuleType:
    """The torch module, whose threads wait for each other awake only for a moment.

    GNU OpenMP's own 300,000 turns make steps ten times as long beside another busy process; none
    at all double the time of small steps on an idle machine. Read when the library is loaded, so
    the first import of torch must be this one.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"
    with pause_gc():
        import torch as library
    return library


def import_diffusers() -> ModuleType:
    """The diffusers module, with its logs and transformers' at errors only."""
    import_torch()
    with suppress_warnings(), pause_gc(), defer_imports():
        import transformers.utils.logging as transformers_log

        # Before anything else of either: they log while they are imported.
        transformers_log.set_verbosity_error()
        transformers_log.disable_progress_bar()
        import diffusers as library

        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
        import transformers.dynamic_module_utils as transformers_code

        # At 0 it refuses to run a model's own code where it would ask the terminal for leave.
        transformers_code.TIME_OUT_REMOTE_CODE = 0
    return library


def import_pipeline_class(name: str) -> LibraryObject:
    """A pipeline class of diffusers; only its own module is imported. Raises ModelError."""
    library = import_diffusers()
    with suppress_warnings(), pause_gc(), defer_imports():
        try:
            found = getattr(library, name, None)
        except (ImportError, RuntimeError) as error:  # diffusers' lazy modules raise either
            raise ModelError(f"The pipeline class {name} cannot be imported: {error}") from error
    if found is None:
        raise ModelError(
            f"The model needs the pipeline class {name}, which diffusers {library.__version__} "
            "does not have.",
            hint="A newer diffusers may have it.",
        )
    if missing := getattr(found, "_backends", None):  # diffusers' stand-in for what it lacks
        raise ModelError(f"The pipeline class {name} needs {', '.join(missing)} installed.")
    if not inspect.isclass(found) or not issubclass(found, library.DiffusionPipeline):
        raise ModelError(f"The model names {name} as its pipeline class, which is none.")
    return found


def load_custom_pipeline(folder: Path, module: str, name: str) -> LibraryObject:
    """A pipeline class from a model's own code, which is run. Raises ModelError."""
    import_diffusers()
    from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module

    try:
        return get_class_from_dynamic_module(
            str(folder.absolute()),
            module_file=f"{module}.py",
            class_name=name,
            local_files_only=True,
            trust_remote_code=True,
        )
    except Exception as error:  # code of any kind runs here
        raise ModelError(f"The model's own code {folder / module}.py failed: {error}") from error
