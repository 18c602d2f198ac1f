"""`t2i config`: reads and writes the settings file."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from t2i_cli.cli.option_groups import command, examples
from t2i_cli.cli.options import JsonOpt, QuietOpt
from t2i_cli.errors import InputError, T2IError
from t2i_cli.files.user_paths import expand_option
from t2i_cli.settings import store
from t2i_cli.terminal.console import console

app = typer.Typer(
    help="Read and write the settings.",
    no_args_is_help=True,
    epilog=examples("t2i config set model sdxl", "t2i config list"),
    rich_markup_mode=None,
)

KeyArg = Annotated[str, typer.Argument(help=f"One of {', '.join(store.SETTINGS)}.")]


@command(app, "t2i config get model", "t2i config get format --json")
def get(key: KeyArg, json: JsonOpt = False) -> None:
    """Print a setting's value, from the environment or the file."""
    console.configure(json=json)
    found = store.find_setting(key)
    if json:
        console.result_json(_record(key, found))
    elif found:
        console.result(store.redact(key, found.value))
    else:
        console.note(f"{key} is not set.")


@command(
    app,
    "t2i config set model sdxl",
    "t2i config set keep_alive 10m",
    "t2i config set http_api_key - < key.txt",
    name="set",
)
def set_(
    key: KeyArg,
    value: Annotated[str, typer.Argument(help="The value to keep; a secret's is - (stdin).")],
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Keep a setting in the file."""
    console.configure(json=json, quiet=quiet)
    if store.setting_named(key).secret:
        if value != "-":
            raise InputError(
                f"{key} is a secret, and what stands on a command line can be seen by others.",
                hint=f"Pipe it in: t2i config set {key} - < FILE",
            )
        value = sys.stdin.readline().strip()
    if check := _CHECKS.get(key):
        try:
            check(value)
        except T2IError as error:
            raise InputError(error.message, hint=error.hint, field=key) from error
    value = store.set_setting(key, value)
    console.note(f"{key} is {store.redact(key, value)} in {store.settings_path()}.")
    found = store.find_setting(key)
    if found and found.source == store.setting_named(key).variable:
        console.warn(f"{found.source} is set and wins over the file.")


@command(app, "t2i config unset model", "t2i config unset http_url --quiet")
def unset(key: KeyArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Take a setting out of the file."""
    console.configure(json=json, quiet=quiet)
    if store.unset_setting(key):
        console.note(f"{key} is no longer set in {store.settings_path()}.")
    else:
        console.note(f"{key} was not set in {store.settings_path()}.")


@command(
    app,
    "t2i config list",
    "t2i config list --all",
    "t2i config list --json",
    name="list",
    alias="ls",
)
def list_(
    all_: Annotated[
        bool, typer.Option("--all", "-a", help="Print what holds where nothing is set, too.")
    ] = False,
    json: JsonOpt = False,
) -> None:
    """Print every setting with its value and where that comes from."""
    console.configure(json=json)
    for key, setting in store.SETTINGS.items():
        found = store.find_setting(key)
        if json:
            console.result_json(_record(key, found) | (_effective(key, found) if all_ else {}))
        elif found:
            origin = f"{_origin(key, found)} " if all_ else ""
            console.result(f"{key} = {store.redact(key, found.value)}  ({origin}{found.source})")
        elif all_:
            console.result(f"{key} = {setting.default or 'nothing'}  (default)")
        else:
            console.result(f"{key} is not set")


def _effective(key: str, found: store.SettingValue | None) -> dict[str, object]:
    """What holds: the value that is set, or the default in words, and where it comes from."""
    value = store.redact(key, found.value) if found else store.setting_named(key).default or None
    return {"effective": value, "from": _origin(key, found)}


def _origin(key: str, found: store.SettingValue | None) -> str:
    if found is None:
        return "default"
    return "environment" if found.source == store.setting_named(key).variable else "file"


@command(app, "t2i config path", "t2i config path --json")
def path(json: JsonOpt = False) -> None:
    """Print where the settings file is, or would be."""
    console.configure(json=json)
    file = store.settings_path()
    if json:
        console.result_json({"path": str(file), "exists": os.path.exists(file)})
    else:
        console.result(str(file))


def _record(key: str, found: store.SettingValue | None) -> dict[str, object]:
    setting = store.setting_named(key)
    return {
        "key": key,
        "value": store.redact(key, found.value) if found else None,
        "source": found.source if found else None,
        "variable": setting.variable,
        "takes": setting.takes,
    }


def _check_model(value: str) -> None:
    from t2i_cli.models import bucket_models, catalog, own_models, weight_sources

    if not (
        catalog.find_in_catalog(value)
        or own_models.find_own_model(value)
        or catalog.folder_named(value)
        or weight_sources.names_file(value)
        or catalog.is_repository(catalog.parse_address(value)[0])
        or bucket_models.is_bucket_model(value)
    ):
        raise catalog.unknown_model(value)


def _check_output(value: str) -> None:
    from t2i_cli.output import filenames

    # A name without an extension gets its format from an option.
    format = "png" if filenames.template_extension(value) == "" else None
    filenames.parse_output(value, format, is_folder=os.path.isdir(value))


def _check_prices(value: str) -> None:
    from t2i_cli.vertex import machine_types

    machine_types.read_prices(value)


def _check_image_prices(value: str) -> None:
    from t2i_cli.models import image_prices

    image_prices.read_image_prices(value)


def _check_certificates(value: str) -> None:
    from t2i_cli.net import http_client

    http_client.trusted_certificates(expand_option(value))


_CHECKS: Mapping[str, Callable[[str], object]] = {
    "model": _check_model,
    "output": _check_output,
    "vertex_prices": _check_prices,
    "image_prices": _check_image_prices,
    "vertex_ca_file": _check_certificates,
}
"""Checks of values that the settings' own table, which knows no model, cannot make."""
