"""Settings: where they come from, and the file that keeps them.

A value comes from the environment, else from the TOML file; a command's own option wins over both,
and the model's default fills what none of them sets.
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
from t2i_cli.files.state_files import replace_text
from t2i_cli.settings.schema import SETTINGS as SETTINGS
from t2i_cli.settings.schema import Setting

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

CONFIG_VARIABLE = "T2I_CONFIG"
MASK = "********"

_LIKE_A_SECRET = re.compile(r"token|passw|secret|credential|api.?key|^hf_", re.IGNORECASE)


@dataclass(frozen=True)
class SettingValue:
    """A setting's value and its source: the variable's name or the file's path."""

    value: str
    source: str


def settings_path() -> Path:
    """The settings file: the one that T2I_CONFIG names, or config.toml in the platform's place."""
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named).expanduser()
    from platformdirs import user_config_path

    return user_config_path("t2i", appauthor=False) / "config.toml"


def setting_named(key: str) -> Setting:
    """The setting of that key; raises InputError naming the valid ones."""
    if found := SETTINGS.get(key):
        return found
    if _LIKE_A_SECRET.search(key):
        raise InputError(
            f"{key} is not a setting: t2i keeps no token of its own.",
            hint="`t2i login` asks for one and hands it to huggingface_hub.",
        )
    raise InputError(f"There is no setting {key}.", hint=f"There are {', '.join(SETTINGS)}.")


def find_setting(key: str) -> SettingValue | None:
    """A setting's value and source; raises InputError on a bad value, or a wrong file."""
    wanted = setting_named(key)
    if value := os.environ.get(wanted.variable):
        return SettingValue(_checked(wanted, value, wanted.variable), wanted.variable)
    value = read_settings().get(key)
    return None if value is None else SettingValue(value, str(settings_path()))


def get_setting(key: str) -> str | None:
    """A setting's value, or None where neither the environment nor the file sets it."""
    found = find_setting(key)
    return found.value if found else None


def resolve_setting(key: str, option: str | None) -> str | None:
    """What a command goes by: its own option, checked as the setting is, or else the setting."""
    if option is None:
        return get_setting(key)
    flag = re.sub("^(http|vertex)_", "", key).replace("_", "-")
    return _checked(setting_named(key), option, f"--{flag}")


def redact(key: str, value: str) -> str:
    """The value as it may be printed: a secret one is masked."""
    return MASK if setting_named(key).secret else value


def read_settings() -> dict[str, str]:
    """Every setting of the file, checked; raises InputError naming the file."""
    file = settings_path()
    values: dict[str, str] = {}
    for key, value in _parse(_text(file), file).items():
        try:
            values[key] = _checked(setting_named(key), value, str(file))
        except InputError as error:
            where = "" if str(file) in error.message else f"{file}: "
            hint = f"{error.hint or ''} `t2i config unset {key}` takes it out.".strip()
            raise InputError(where + error.message, hint=hint) from error
    return values


def set_setting(key: str, value: str) -> None:
    """Write a setting into the file, leaving its comments; raises InputError on a bad value."""
    _checked(setting_named(key), value, key)
    document = _document()
    document[key] = value
    _write(document)


def unset_setting(key: str) -> bool:
    """Take a setting out of the file, a wrong one, too; returns whether it was there."""
    document = _document()
    if key not in document:
        setting_named(key)
        return False
    del document[key]
    _write(document)
    return True


def set_offline() -> None:
    """Have this process contact nothing: huggingface_hub and all that build on it read this.

    It acts at their import, so call it before.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    if constants := sys.modules.get("huggingface_hub.constants"):
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def _checked(wanted: Setting, value: object, source: str) -> str:
    if isinstance(value, str) and wanted.accepts(value):
        return value
    given = MASK if wanted.secret else repr(value)
    plain = source in {wanted.key, wanted.variable} or source.startswith("--")
    where = source if plain else f"{source}: {wanted.key}"
    raise InputError(f"{where} must be {wanted.takes}, not {given}.", field=wanted.key)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8.") from error
    except OSError as error:
        raise StorageError(f"Cannot read {file}: {os_reason(error)}.") from error


def _parse(text: str, file: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file} is not valid TOML: {error}.") from error


def _document() -> "TOMLDocument":
    import tomlkit

    file = settings_path()
    text = _text(file)
    _parse(text, file)
    return tomlkit.parse(text)


def _write(document: "TOMLDocument") -> None:
    """Replace the file in one step, readable by its owner only."""
    file = settings_path()
    try:
        # A file kept elsewhere through a link stays there.
        file = file.resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, document.as_string(), sync=True)
    except OSError as error:
        raise StorageError(f"Cannot write {file}: {os_reason(error)}.") from error
