"""Spare the libraries scans of files that they do twice, or slowly, while they are imported."""

import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_SCANNER = "transformers.utils.import_utils"


@contextmanager
def shared_scans() -> Iterator[None]:
    """Let transformers and diffusers scan packages and models only once, in this context.

    Both ask which distribution each package is of, and each time the files of all distributions are
    read. transformers reads the 2,000 files of its models for their names.
    """
    scan = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = functools.cache(scan)
    finder = _ScannerFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = scan
        sys.meta_path.remove(finder)


class _ScannerFinder:
    """Import finder of the module with which transformers scans its models."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, which has its scans replaced; `None` for other modules."""
        spec = PathFinder.find_spec(name, path, target) if name == _SCANNER else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_replace(module: ModuleType) -> None:
            execute(module)
            replace_scans(module)

        vars(spec.loader)["exec_module"] = execute_and_replace
        return spec


def replace_scans(scanner: ModuleType) -> None:
    """Replace two functions of transformers by ones with the same results, if they are as known."""
    scan = getattr(scanner, "create_import_structure_from_path", None)
    if scan is not None and hasattr(scan, "cache_info"):
        vars(scanner)["create_import_structure_from_path"] = _by_folder(scan)
    if read_names := getattr(scanner, "fetch__all__", None):
        vars(scanner)["fetch__all__"] = _from_last_line(read_names)


def _by_folder(scan: Callable[[str | Path], object]) -> Callable[[str | Path], object]:
    """A scan that has one key in its cache for a folder, be it named itself or by its __init__."""

    @functools.wraps(scan)
    def scan_folder(path: str | Path) -> object:
        return scan(Path(path).parent if os.path.isfile(path) else path)

    return scan_folder


def _from_last_line(read_names: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """A reading of `__all__` that starts at the last line with it, which is the one that counts.

    The library's own looks at every line of the file.
    """

    @functools.wraps(read_names)
    def read_tail(source: str) -> list[str]:
        return read_names(source[source.rfind("\n__all__") + 1 :])

    return read_tail
