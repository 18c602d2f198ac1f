"""Have the libraries scan files once that they would scan twice while they are imported."""

import functools
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def share_package_names() -> Iterator[None]:
    """Read in this context only once which distribution each importable package is of.

    transformers and diffusers both ask, and each time the files of all distributions are read.
    """
    scan = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = functools.cache(scan)
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = scan


def share_model_names() -> None:
    """Let transformers.models use the names that transformers has read of its 2,000 files.

    Both ask for the same folder, one by its path and one by its __init__.py, which are two keys of
    a cache.
    """
    utils = sys.modules.get("transformers.utils.import_utils")
    scan = getattr(utils, "create_import_structure_from_path", None)
    if scan is None or not hasattr(scan, "cache_info"):
        return

    @functools.wraps(scan)
    def scan_folder(path: str | Path) -> object:
        return scan(Path(path).parent if os.path.isfile(path) else path)

    vars(utils)["create_import_structure_from_path"] = scan_folder
