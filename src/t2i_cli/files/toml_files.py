"""Reads TOML files of users, as tables of prices."""

import tomllib
from pathlib import Path

from t2i_cli.errors import InputError, StorageError, os_reason
from t2i_cli.files.input_files import read_input
from t2i_cli.files.state_files import MAX_STATE_BYTES
from t2i_cli.files.user_paths import expand_home


def read_toml_file(named: str) -> tuple[Path, dict[str, object]]:
    """The file's path, and its content. Raises InputError or StorageError."""
    file = Path(expand_home(named))
    try:
        return file, tomllib.loads(read_input(file, MAX_STATE_BYTES).decode())
    except OSError as error:
        raise StorageError(f"Cannot read {file}: {os_reason(error)}.") from error
    except RecursionError as error:
        raise InputError(f"{file} is not valid TOML: it is nested too deeply.") from error
    except ValueError as error:  # also another encoding, a large file, numbers of too many digits
        raise InputError(f"{file} is not valid TOML: {error}.") from error
