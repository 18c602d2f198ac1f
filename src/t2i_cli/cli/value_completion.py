"""Values that the shell completes for options and arguments, by the parameter's name.

The shell starts t2i for every completion: nothing here may load torch or ask a server.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import get_args

import typer

from t2i_cli.request_fields import FIELDS, QUANTIZATIONS, SERVINGS
from t2i_cli.schedule_names import SCHEDULE_LABELS
from t2i_cli.settings.schema import SETTINGS

Completer = Callable[[typer.Context], Iterable[str | tuple[str, str]]]
"""All values of a parameter, each alone or with its help."""


def completer_for(name: str) -> Callable[..., object] | None:
    """The completion function of a parameter, as Typer takes it; `None` if it has no values."""
    found = _COMPLETERS.get(name)
    if found is None:
        return None

    def complete(ctx: typer.Context) -> list[str | tuple[str, str]]:
        try:
            return list(found(ctx))
        except Exception:  # noqa: BLE001 - a prompt is no place for an error: nothing is offered
            return []

    return complete


def _choices(key: str) -> Completer:
    return lambda _: SETTINGS[key].choices


def _models(context: typer.Context) -> list[str]:
    """Aliases of the catalogue, the user's own, and what is downloaded.

    For `models remove` those alone that can be removed.
    """
    from t2i_cli.models import catalog, downloaded, user_catalog

    alias_of = {spec.repo: spec.name for spec in catalog.MODELS.values() if spec.repo}
    try:
        here = [alias_of.get(repo, repo) for repo in downloaded.downloaded_repositories()]
    except (OSError, ValueError):  # no cache that can be read, or none that its settings name
        here = []
    removable_only = context.command.name in {"remove", "rm"}
    known = [] if removable_only else list(catalog.MODELS)
    return list(dict.fromkeys([*known, *user_catalog.known_names(), *here]))


def _schedulers(_: typer.Context) -> tuple[str, ...]:
    from t2i_cli.models import schedulers

    return schedulers.scheduler_names(None)


def _endpoints(_: typer.Context) -> list[tuple[str, str]]:
    """The endpoints that are kept here, by their numbers."""
    from t2i_cli.vertex import endpoint_store

    return [
        (record.name.split("/")[-1], record.model or record.name)
        for record in endpoint_store.list_records()
    ]


def _setting_values(context: typer.Context) -> Iterable[str | tuple[str, str]]:
    """The values of the setting that `config set` names."""
    key = str(context.params.get("key"))
    if found := _BY_SETTING.get(key):
        return found(context)
    return SETTINGS[key].choices


def _varied_fields(_: typer.Context) -> list[str]:
    return [f"{name}=" for name in FIELDS]


def _input_formats(_: typer.Context) -> tuple[str, ...]:
    from t2i_cli.prompts import InputFormat

    return get_args(InputFormat)


def _machine_types(_: typer.Context) -> Iterable[str]:
    from t2i_cli.vertex import hardware_table

    return hardware_table.hardware_table().machines


def _accelerators(_: typer.Context) -> Iterable[str]:
    from t2i_cli.vertex import hardware_table

    known = hardware_table.hardware_table().accelerators
    return [name for name, facts in known.items() if not facts.ended]


def _commands(context: typer.Context) -> list[str]:
    """The names of commands after those that `t2i help` has been given already."""
    found: object = context.find_root().command
    for word in context.params.get("words") or ():
        found = getattr(found, "commands", {}).get(word)
    return [name for name, one in getattr(found, "commands", {}).items() if not one.hidden]


_BY_SETTING: Mapping[str, Completer] = {"model": _models, "vertex_endpoint": _endpoints}

_COMPLETERS: Mapping[str, Completer] = {
    "model": _models,
    "scheduler": _schedulers,
    "quantize": lambda _: QUANTIZATIONS,
    "schedule": lambda _: tuple(SCHEDULE_LABELS),
    "endpoint": _endpoints,
    "dialect": _choices("http_dialect"),
    **{key: _choices(key) for key in ("backend", "device", "dtype", "memory", "compile", "format")},
    "serving": lambda _: SERVINGS,
    "input_format": _input_formats,
    "vary": _varied_fields,
    "machine_type": _machine_types,
    "accelerator": _accelerators,
    "key": lambda _: SETTINGS,
    "value": _setting_values,
    "words": _commands,
}
