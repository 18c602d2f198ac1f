"""Import torch, transformers and diffusers lazily, with their logs and warnings suppressed."""

import gc
import importlib
import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from t2i_cli import library_environment
from t2i_cli.errors import ModelError, error_reason
from t2i_cli.models import repeated_scans
from t2i_cli.models.lazy_imports import defer_imports

LibraryObject = Any
"""An object of diffusers, transformers or torch, which have few type hints or none."""


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Suppress the libraries' warnings, which are for developers, in this context."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def pause_gc() -> Iterator[None]:
    """Disable garbage collection while many long-lived objects are created, then freeze them.

    The collector would scan all of them repeatedly: a fifth of the time to import diffusers.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


@contextmanager
def naming_variables() -> Iterator[None]:
    """Raise InputError where an environment variable prevents an import in this context."""
    try:
        yield
    except Exception as error:  # an import runs the library's code, which may raise anything
        if fault := library_environment.import_fault(error):
            raise fault from error
        raise


def import_torch() -> ModuleType:
    """Import torch with a short spin wait of its OpenMP threads (GOMP_SPINCOUNT).

    GNU OpenMP's default of 300,000 spins makes steps ten times as long beside another busy process;
    no spinning doubles the time of small steps on an idle machine. OpenMP reads the variable when
    the library is loaded, so this must be the first import of torch.
    """
    library_environment.set_aside_invalid()
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"
    with naming_variables(), pause_gc():
        import torch as library
    return library


def import_diffusers() -> ModuleType:
    """Import diffusers; it and transformers log errors only and run no custom code unasked."""
    import_torch()
    # diffusers imports these where they are installed, and they log what is for other machines.
    for noisy in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with (
        naming_variables(),
        suppress_warnings(),
        pause_gc(),
        defer_imports(),
        repeated_scans.shared_scans(),
    ):
        import transformers.utils.logging as transformers_log

        # Before the other imports: both libraries log while they are imported.
        transformers_log.set_verbosity_error()
        transformers_log.disable_progress_bar()
        import diffusers as library

        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
        import transformers.dynamic_module_utils as transformers_code

        # With a timeout of 0 it refuses a model's own code instead of prompting on the terminal.
        transformers_code.TIME_OUT_REMOTE_CODE = 0
    return library


def import_pipeline_class(name: str) -> LibraryObject:
    """Import a pipeline class of diffusers, and only its own module. Raises ModelError."""
    library = import_diffusers()
    with suppress_warnings(), pause_gc(), defer_imports():
        try:
            with naming_variables():
                cls = getattr(library, name, None)
        except (ImportError, RuntimeError) as error:  # diffusers' lazy modules raise either
            raise ModelError(
                f"The pipeline class {name} cannot be imported: {error_reason(error)}"
            ) from error
    if cls is None:
        raise ModelError(
            f"The model needs the pipeline class {name}, which diffusers {library.__version__} "
            "does not have.",
            hint="A newer diffusers may have it.",
        )
    if missing := getattr(cls, "_backends", None):  # a placeholder: dependencies are missing
        raise ModelError(f"The pipeline class {name} needs {', '.join(missing)} installed.")
    if not inspect.isclass(cls) or not issubclass(cls, library.DiffusionPipeline):
        raise ModelError(f"The model names {name} as its pipeline class, which is none.")
    return cls


@contextmanager
def component_variants(variants: Mapping[str, str]) -> Iterator[None]:
    """Have diffusers load these variants of a pipeline's components in this context.

    Its own `variant` is one for all components, and by it a component has the variant if any name
    in its folder begins like it after the first dot.
    """
    module: LibraryObject = importlib.import_module("diffusers.pipelines.pipeline_utils")
    function = module._identify_model_variants
    module._identify_model_variants = lambda **_: dict(variants)
    try:
        yield
    finally:
        module._identify_model_variants = function


def load_custom_pipeline(folder: Path, module: str, name: str) -> LibraryObject:
    """Import a pipeline class from a model's own code, which runs it. Raises ModelError."""
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
    except Exception as error:  # the model's code may raise anything
        raise ModelError(
            f"The model's own code {folder / module}.py failed: {error_reason(error)}"
        ) from error
