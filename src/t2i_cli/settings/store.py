"""Reads settings from the environment and a TOML file, and writes the file.

Precedence: a command's option, the environment variable, the file, the default.
"""

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_cli.errors import InputError, StorageError, os_reason
from t2i_cli.files.input_files import read_input
from t2i_cli.files.state_files import MAX_STATE_BYTES, replace_text
from t2i_cli.files.user_folders import NoHomeError, user_folder
from t2i_cli.files.user_paths import expand_option
from t2i_cli.known_names import suggest_name
from t2i_cli.known_secrets import register_secret
from t2i_cli.settings.schema import SETTINGS as SETTINGS
from t2i_cli.settings.schema import Setting
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

CONFIG_VARIABLE = "T2I_CONFIG"
MASK = "********"

_SECRET_NAME = re.compile(r"token|passw|secret|credential|api.?key|^hf_", re.IGNORECASE)


@dataclass(frozen=True)
class SettingValue:
    """A setting's value and its source: the variable's name or the file's path."""

    value: str
    source: str


def settings_path() -> Path:
    """The settings file: T2I_CONFIG, or config.toml in the user's configuration folder.

    Raises InputError if T2I_CONFIG begins with a home that there is not, NoHomeError without one.
    """
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(expand_option(named))
    return user_folder("config") / "config.toml"


def setting_named(key: str) -> Setting:
    """The setting with that key; raises InputError listing the valid keys."""
    if found := SETTINGS.get(key):
        return found
    if _SECRET_NAME.search(key):
        raise InputError(
            f"{key} is not a setting: t2i keeps no token of its own.",
            hint="`t2i login` asks for one and hands it to huggingface_hub.",
        )
    shown = key if key and key.isprintable() else repr(key)
    raise InputError(
        f"There is no setting {shown}.",
        hint=f"{suggest_name(key, SETTINGS)}There are {', '.join(SETTINGS)}.",
    )


def find_setting(key: str) -> SettingValue | None:
    """A setting's value and source; raises InputError for an invalid value or file."""
    setting = setting_named(key)
    if value := os.environ.get(setting.variable):
        return SettingValue(_check(setting, value, setting.variable), setting.variable)
    value = read_settings().get(key)
    return None if value is None else SettingValue(value, str(settings_path()))


def get_setting(key: str) -> str | None:
    """A setting's value, or None where neither the environment nor the file sets it."""
    found = find_setting(key)
    return found.value if found else None


def resolve_setting(key: str, option: str | None) -> str | None:
    """A command's option if given, validated like the setting, else the setting.

    Raises InputError.
    """
    if option is None:
        return get_setting(key)
    flag = re.sub("^(http|vertex|gemini|hf|ray)_", "", key).replace("_", "-")
    return _check(setting_named(key), option, f"--{flag}")


def redact(key: str, value: str) -> str:
    """The value for printing; secrets are masked."""
    return MASK if setting_named(key).secret else value


def read_settings() -> dict[str, str]:
    """Every setting of the file, validated; none without a home. Raises InputError naming it."""
    try:
        file = settings_path()
    except NoHomeError:
        return {}
    values: dict[str, str] = {}
    for key, value in _parse(_read_text(file), file).items():
        try:
            values[key] = _check(setting_named(key), value, str(file))
        except InputError as error:
            where = "" if str(file) in error.message else f"{file}: "
            hint = f"{error.hint or ''} `t2i config unset {key}` takes it out.".strip()
            raise InputError(where + error.message, hint=hint) from error
    return values


def set_setting(key: str, value: str) -> str:
    """Write a setting into the file, keeping its comments, and return the value written.

    Raises InputError or StorageError.
    """
    usual = _check(setting_named(key), value, key)
    document = _load_document()
    document[key] = usual
    _write(document)
    return usual


def unset_setting(key: str) -> bool:
    """Remove a setting from the file, also an invalid one; returns whether it was set."""
    document = _load_document()
    if key not in document:
        setting_named(key)
        return False
    del document[key]
    _write(document)
    return True


def set_offline() -> None:
    """Set HF_HUB_OFFLINE, which huggingface_hub and the libraries based on it read.

    They read it at import, so call this before.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    if constants := sys.modules.get("huggingface_hub.constants"):
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def _check(setting: Setting, value: object, source: str) -> str:
    """The value in its usual spelling. Raises InputError."""
    if setting.secret and isinstance(value, str):
        register_secret(value)
    if isinstance(value, str) and setting.accepts(usual := setting.spellings.get(value, value)):
        return usual
    given = MASK if setting.secret else repr(value)
    plain = source in {setting.key, setting.variable} or source.startswith("--")
    where = source if plain else f"{source}: {setting.key}"
    meant = "" if setting.secret else suggest_name(str(value), setting.choices).strip()
    raise InputError(
        f"{where} must be {setting.takes}, not {given}.", hint=meant or None, field=setting.key
    )


def _read_text(file: Path) -> str:
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


def _parse(text: str, file: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise InputError(f"{file} is not valid TOML: it is nested too deeply.") from error
    except ValueError as error:  # also numbers of too many digits
        raise InputError(f"{file} is not valid TOML: {error}.") from error


def _load_document() -> "TOMLDocument":
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    file = settings_path()
    text = _read_text(file)
    _parse(text, file)
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:  # it takes less depth than tomllib
        raise InputError(f"{file} cannot be edited: {error}.") from error


def _write(document: "TOMLDocument") -> None:
    """Replace the file atomically, readable by its owner only. Raises StorageError."""
    file = settings_path()
    try:
        # If the path is a symbolic link, replace its target.
        file = file.resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, document.as_string(), sync=True)
    except OSError as error:
        raise StorageError(f"Cannot write {file}: {os_reason(error)}.") from error
