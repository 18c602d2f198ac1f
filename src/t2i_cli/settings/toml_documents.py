"""Reads the TOML files in the user's settings folder, and writes them, keeping their comments."""

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_cli.errors import InputError, StorageError, os_reason
from t2i_cli.files.input_files import read_input
from t2i_cli.files.state_files import MAX_STATE_BYTES, replace_text
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

CONFIG_VARIABLE = "T2I_CONFIG"


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


def load_document(file: Path) -> "TOMLDocument":
    """The file as it can be edited; an empty one if there is none. Raises T2IError."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    text = read_document_text(file)
    parse_document(text, file)
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:  # it takes less depth than tomllib
        raise InputError(f"{file} cannot be edited: {error}.") from error


def write_document(file: Path, document: "TOMLDocument") -> None:
    """Replace the file atomically, readable by its owner only. Raises StorageError."""
    try:
        # If the path is a symbolic link, replace its target.
        file = file.resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, document.as_string(), sync=True)
    except OSError as error:
        raise StorageError(f"Cannot write {file}: {os_reason(error)}.") from error
