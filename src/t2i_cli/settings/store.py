"""Reads settings from the environment and a TOML file, and writes the file.

Precedence: a command's option, the environment variable, the file, the default.
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from t2i_cli.errors import InputError
from t2i_cli.files.user_folders import NoHomeError, user_folder
from t2i_cli.files.user_paths import expand_option
from t2i_cli.known_names import suggest_name
from t2i_cli.known_secrets import register_secret
from t2i_cli.settings.schema import SETTINGS as SETTINGS
from t2i_cli.settings.schema import Setting
from t2i_cli.settings.toml_documents import (
    CONFIG_VARIABLE as CONFIG_VARIABLE,
)
from t2i_cli.settings.toml_documents import (
    edited_document,
    parse_document,
    read_document_text,
)

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
    for key, value in parse_document(read_document_text(file), file).items():
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
    with edited_document(settings_path()) as document:
        document[key] = usual
    return usual


def unset_setting(key: str) -> bool:
    """Remove a setting from the file, also an invalid one; returns whether it was set."""
    with edited_document(settings_path()) as document:
        if key not in document:
            setting_named(key)
            return False
        del document[key]
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
