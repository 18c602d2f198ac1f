"""The file with a user's own models, `models.toml` beside the settings: a table for each name.

What a table means: `own_models.py`. Here names are read and tables are written.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from t2i_cli.errors import InputError, StorageError
from t2i_cli.files.user_folders import NoHomeError
from t2i_cli.part_source import PartSource
from t2i_cli.request_adapters import Adapter
from t2i_cli.request_fields import FIELDS
from t2i_cli.settings import store, toml_documents

NAME_FORM = re.compile(r"(?=.*[^\W_])\w[\w.-]{0,63}")
"""What an own model's name looks like: no path, no repository, no address."""
_FILE_NAME = "models.toml"


def user_catalog_path() -> Path:
    """The file, in the folder of the settings file. Raises InputError or NoHomeError."""
    return store.settings_path().with_name(_FILE_NAME)


def read_tables() -> dict[str, object]:
    """What the file has by name, unchecked; nothing without a home. Raises T2IError."""
    try:
        file = user_catalog_path()
    except NoHomeError:
        return {}
    return toml_documents.parse_document(toml_documents.read_document_text(file), file)


def known_names() -> list[str]:
    """The names in the file, for suggestions: none where it cannot be read."""
    with suppress(InputError, StorageError):
        return list(read_tables())
    return []


def write_table(name: str, table: Mapping[str, object], *, overwrite: bool) -> Path:
    """Write a table of that name, if to `overwrite` in place of one that is there; the file.

    Raises InputError or StorageError.
    """
    file = user_catalog_path()
    with toml_documents.edited_document(file) as document:
        if name in document and not overwrite:
            raise InputError(
                f"There is a model {name} of yours already.",
                hint="--overwrite replaces it.",
                field="name",
            )
        document[name] = {key: _in_one_line(value) for key, value in table.items()}
    return file


def _in_one_line(value: object) -> object:
    """The value as TOML has it in the line of its key: a list, or a table in braces."""
    import tomlkit

    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        table.update({key: _in_one_line(each) for key, each in value.items()})
        return table
    if isinstance(value, list):
        array = tomlkit.array()
        array.extend([_in_one_line(each) for each in value])
        return array
    return value


def remove_table(name: str) -> bool:
    """Remove a name from the file, whatever it has there; returns whether there was one.

    Raises InputError or StorageError.
    """
    try:
        file = user_catalog_path()
    except NoHomeError:
        return False
    with toml_documents.edited_document(file) as document:
        if name not in document:
            return False
        del document[name]
        return True


def check_own_files(name: str, values: Mapping[str, object]) -> None:
    """Raise InputError if a file among the defaults of an own model, by field, is gone."""
    for field, value in values.items():
        # A source is a named tuple itself.
        several = isinstance(value, tuple) and not isinstance(value, PartSource)
        for each in value if isinstance(value, tuple) and several else (value,):
            source = each.source if isinstance(each, Adapter | PartSource) else ""
            if os.path.isabs(source) and not os.path.exists(source):
                part = f"one of its {field}" if several else f"its {field}"
                raise InputError(
                    f"Your model {name} has {source} as {part}, which is not there.",
                    hint=f"{FIELDS[field].flags[0]} names another one for now, "
                    f"`t2i models add {name} --overwrite` for good.",
                    field=field,
                )


def table_error(name: str, key: str | None, message: str, hint: str | None = None) -> InputError:
    """The error about a table, or a key in it, with its line in the file."""
    file = user_catalog_path()
    line = _line_of(toml_documents.read_document_text(file), name, key)
    where = f"{file}, line {line}" if line else str(file)
    hint = hint or f"`t2i models remove {name}` takes the entry out."
    return InputError(f"{where}: {name}: {message}", hint=hint, field="model")


def _line_of(text: str, name: str, key: str | None) -> int | None:
    """The line, from 1, of a key in the table of that name, or of the table itself."""
    spelled = rf"(?:{re.escape(name)}|\"{re.escape(name)}\"|'{re.escape(name)}')"
    heading = re.compile(rf"\s*(?:\[\[?\s*{spelled}\s*[\].]|{spelled}\s*[.=])")
    key_form = re.compile(rf"\s*(?:(?:\[\[?\s*)?{spelled}\s*\.)?\s*[\"']?{re.escape(key or '')}\b")
    found = None
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if heading.match(line) or line.lstrip().startswith("["):
            inside = bool(heading.match(line))
        if not inside:
            continue
        found = found or number
        if key and key_form.match(line):
            return number
    return found
