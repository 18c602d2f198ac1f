"""Reads the TOML files in the user's settings folder, and writes them, keeping their comments."""

import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_cli.errors import InputError, StorageError, os_reason
from t2i_cli.files.input_files import read_input
from t2i_cli.files.state_files import MAX_STATE_BYTES, replace_text
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

CONFIG_VARIABLE = "T2I_CONFIG"
_LOCK_SECONDS = 10
_LOCK_POLL_SECONDS = 0.02


def read_document_text(file: Path) -> str:
    """The file's text; empty if there is none. Raises InputError or StorageError."""
    try:
        if os.path.exists(file) and os.path.samefile(file, os.devnull):
            return ""
        # Nothing else but a regular file: a pipe could be read once only, or never ends.
        text = read_input(file, MAX_STATE_BYTES).decode().replace("\r\n", "\n")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8.") from error
    except ValueError as error:
        raise InputError(f"Cannot read {file}: {error}.") from error
    except OSError as error:
        if isinstance(error, NotADirectoryError) and not os.environ.get(CONFIG_VARIABLE):
            return ""  # the home may be /dev/null
        raise StorageError(f"Cannot read {file}: {os_reason(error)}.") from error
    console.trace(f"settings read from {file}", once=True)
    return text


def parse_document(text: str, file: Path) -> dict[str, object]:
    """The values of a file's text. Raises InputError that names the line."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise InputError(f"{file} is not valid TOML: it is nested too deeply.") from error
    except ValueError as error:  # also numbers of too many digits
        raise InputError(f"{file} is not valid TOML: {error}.") from error


@contextmanager
def edited_document(file: Path) -> Iterator["TOMLDocument"]:
    """The file to be edited, which is replaced in the end if it changed.

    Other processes that edit it wait, so that no change is lost. Raises T2IError.
    """
    with _locked(file):
        document = _load_document(file)
        before = document.as_string()
        yield document
        if document.as_string() != before:
            _write_document(file, document)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the lock of the file's folder, which leaves no file behind. Raises StorageError.

    Where folders have no locks, as on Windows, nothing is waited for.
    """
    from filelock import lock_descriptor

    try:
        # If the path is a symbolic link, its target is replaced.
        folder = file.resolve().parent
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"Cannot write {file}: {os_reason(error)}.") from error
    except RuntimeError as error:  # a loop of links, up to Python 3.12
        raise StorageError(f"Cannot write {file}: it is a loop of symbolic links.") from error
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        with suppress(OSError):  # a file system without locks
            while not lock_descriptor(descriptor, blocking=False):
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"Cannot write {file}: another process has held its folder for "
                        f"{_LOCK_SECONDS} s."
                    )
                time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _load_document(file: Path) -> "TOMLDocument":
    """The file as it can be edited; an empty one if there is none. Raises T2IError."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    text = read_document_text(file)
    parse_document(text, file)
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:  # it takes less depth than tomllib
        raise InputError(f"{file} cannot be edited: {error}.") from error


def _write_document(file: Path, document: "TOMLDocument") -> None:
    """Replace the file atomically, readable by its owner only. Raises StorageError."""
    try:
        # If the path is a symbolic link, replace its target.
        file = file.resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, document.as_string(), sync=True)
    except OSError as error:
        raise StorageError(f"Cannot write {file}: {os_reason(error)}.") from error
