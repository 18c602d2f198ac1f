"""`t2i models add`, and what other commands of `t2i models` tell of a user's own models."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from t2i_cli.cli.options import ConsoleOptions, RequestOptions
from t2i_cli.errors import AccessError, InputError, QuotaError, RemoteError, T2IError, TimedOutError
from t2i_cli.models.own_models import (
    DEFAULT_FIELDS,
    OwnModel,
    check_own_source,
    find_own_model,
    list_own_models,
    new_own_model,
    own_name_of,
)
from t2i_cli.models.user_catalog import read_tables, remove_table, write_table
from t2i_cli.request_fields import FIELDS
from t2i_cli.settings import store
from t2i_cli.terminal.console import console, escape_controls, format_bytes

if TYPE_CHECKING:
    from t2i_cli.backends.local import LocalBackend
    from t2i_cli.request import ResolvedRequest


@dataclass(frozen=True, kw_only=True)
class OwnModelOptions(RequestOptions):
    """The defaults of an own model: every field of a request that it can have."""

    PANEL: ClassVar = "Defaults"
    OMITTED: ClassVar = frozenset(FIELDS) - frozenset(DEFAULT_FIELDS)


@dataclass(frozen=True, kw_only=True)
class OwnModelChecks:
    """How an own model is checked and stored."""

    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model of yours that has this name.")
    ] = False
    offline: Annotated[bool, typer.Option("--offline", help="Contact nothing.")] = False
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Check a model that brings its own code.")
    ] = False


def add(
    name: Annotated[str, typer.Argument(help="The name that it gets.")],
    source: Annotated[str, typer.Argument(help=FIELDS["model"].help)],
    defaults: OwnModelOptions,
    checks: OwnModelChecks,
    console_options: ConsoleOptions,
) -> None:
    """Give a model a name of yours, with defaults; -m takes the name then.

    Nothing is copied or downloaded; the model and what it is used with are checked.
    """
    console.configure(**vars(console_options))
    if checks.offline:
        store.set_offline()
    lora_dir = store.get_setting("lora_dir")
    entry = new_own_model(name, source, defaults.given(), lora_dir=lora_dir)
    if name in read_tables() and not checks.overwrite:
        raise InputError(
            f"There is a model {name} of yours already.",
            hint="--overwrite replaces it.",
            field="name",
        )
    _check_use(entry, checks, lora_dir)
    file = write_table(name, entry.to_table(), overwrite=checks.overwrite)
    if console.json:
        console.result_json(own_record(entry) | {"file": str(file)})
        return
    console.result(name)
    console.note(f"{name} is {entry.model} now; it stands in {file}.")


def _check_use(entry: OwnModel, checks: OwnModelChecks, lora_dir: str | None) -> None:
    """Check that images could be made with the entry; a Hub out of reach is only told.

    Raises T2IError.
    """
    from t2i_cli.backends.local import LocalBackend, LocalOptions
    from t2i_cli.hub.errors import NotDownloadedError

    backend = LocalBackend(
        LocalOptions(
            lora_dir=lora_dir, offline=checks.offline, trust_remote_code=checks.trust_remote_code
        )
    )
    unreachable = (AccessError, QuotaError, RemoteError, TimedOutError, NotDownloadedError)
    try:
        backend.check_fields(_example_request(entry, backend))
    except unreachable as error:
        console.warn(f"What {entry.name} stands for could not be checked: {error.message}")


def _example_request(entry: OwnModel, backend: "LocalBackend") -> "ResolvedRequest":
    """A request as one with the entry's name will be."""
    from t2i_cli.models.request_resolution import build_request, resolve_request

    request = build_request({"prompt": "-", "model": entry.model, **entry.values})
    return resolve_request(
        request, backend.describe(request), on_note=console.warn, on_size_note=console.note
    )


def own_record(entry: OwnModel) -> dict[str, object]:
    """What is known of an own model by its entry, for `--json`."""
    table = entry.to_table()
    return {"name": entry.name, "own": True, "model": table.pop("model"), "defaults": table}


def existing_record(entry: OwnModel | None) -> dict[str, object]:
    """The record of an own model; empty for another. Raises ModelError if its model is gone."""
    if entry is None:
        return {}
    check_own_source(entry)
    return own_record(entry)


def table_row(entry: OwnModel) -> tuple[str, str, str, str, str]:
    """The row of an own model in a table."""
    size = ""
    here = ""
    if os.path.isabs(entry.model):
        here = "yes" if os.path.exists(entry.model) else "gone"
        if os.path.isfile(entry.model):
            size = format_bytes(os.path.getsize(entry.model))
    return entry.name, size, here, "", f"Yours: {escape_controls(entry.model)}"


def remove_entry(name: str) -> str | None:
    """Remove the own model of that name, and return its name; `None` if there is none.

    Raises T2IError.
    """
    found = own_name_of(name)
    if found is None or not remove_table(found):
        return None
    return found


def own_models() -> list[OwnModel]:
    """Every own model; a table that is none is told as a warning, as is a damaged file."""
    try:
        found, damaged = list_own_models()
    except T2IError as error:
        found, damaged = [], [error]
    for each in damaged:
        console.warn(each.message)
    return found


def show_entry(entry: OwnModel) -> None:
    """Print the name, what it stands for, and its defaults."""
    for label, value in {"name": entry.name, **entry.to_table()}.items():
        shown = value if isinstance(value, list) else [value]
        for each in shown:
            console.result(f"{label.replace('_', ' ')}: {escape_controls(_text(each))}")


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return str(value)


def meant_model(name: str) -> tuple[OwnModel | None, str]:
    """The own model of that name, and the name of the model that is meant. Raises T2IError."""
    entry = find_own_model(name)
    return entry, entry.model if entry else name
