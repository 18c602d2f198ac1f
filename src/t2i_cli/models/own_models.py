"""A user's own models: names that stand for a model with defaults, from the user's catalogue.

A request that names one is settled here: the name becomes the file, folder or repository that it
stands for, which records, workers and ids have in its place; its defaults become the spec's.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from t2i_cli.errors import InputError, ModelError, T2IError
from t2i_cli.files.user_paths import expand_home
from t2i_cli.known_names import name_choices
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import adapter_sources, catalog, hub_sources, user_catalog
from t2i_cli.models.request_resolution import build_request
from t2i_cli.part_source import PART_FIELDS, PartSource
from t2i_cli.prompts.entries import check_value
from t2i_cli.request import GenerateRequest
from t2i_cli.request_adapters import Adapter
from t2i_cli.request_fields import FIELDS, MODEL_DEFAULTS

DEFAULT_FIELDS = tuple(
    name for name, known in FIELDS.items() if known.flags and not known.expanded and name != "model"
)
"""The request's fields that an own model can have defaults of: those with an option.

A style is none: it becomes part of the prompt before the model is known.
"""
_MODEL = "model"
_RENAME = "Give the table another name."
_ADDRESS_FIELDS = ("revision", *PART_FIELDS)
"""Defaults that say which model it is."""


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """A name of the user's for a model, and values of the request's fields by name.

    `model` is the whole path of a file or folder, a repository, or an alias.
    """

    name: str
    model: str
    values: Mapping[str, Any]

    @property
    def parts(self) -> dict[str, PartSource]:
        """The parts that are read from elsewhere, by field."""
        return {name: self.values[name] for name in PART_FIELDS if name in self.values}

    @property
    def revision(self) -> str | None:
        """The revision of the repository."""
        return self.values.get("revision")

    @property
    def settings(self) -> dict[str, Any]:
        """The defaults beside those that say which model it is."""
        return {name: v for name, v in self.values.items() if name not in _ADDRESS_FIELDS}

    def to_table(self) -> dict[str, object]:
        """The model and its defaults as the file has them, and as JSON."""
        shown = {name: FIELDS[name].json_value(value) for name, value in self.values.items()}
        return {_MODEL: self.model, **shown}


def find_own_model(name: str) -> OwnModel | None:
    """The user's own model of that name. Raises T2IError for a file or table that is damaged."""
    found = own_name_of(name)
    return None if found is None else _read_table(found, user_catalog.read_tables()[found])


def own_name_of(name: str) -> str | None:
    """The own model's name that is meant, in any spelling that nothing else has, or `None`.

    The catalogue's aliases come first, so that they never depend on the file; a folder of that
    very name comes before another spelling. Raises T2IError for a file that is damaged.
    """
    if not user_catalog.NAME_FORM.fullmatch(name) or catalog.find_in_catalog(name):
        return None
    tables = user_catalog.read_tables()
    if name in tables:
        return name
    if catalog.find_spelled(name) or catalog.folder_named(name) or catalog.file_named(name):
        return None
    letters = catalog.letters_and_digits(name)
    return next((each for each in tables if catalog.letters_and_digits(each) == letters), None)


def list_own_models() -> tuple[list[OwnModel], list[T2IError]]:
    """Every own model, and the error of each table that is none. Raises T2IError for the file."""
    found: list[OwnModel] = []
    errors: list[T2IError] = []
    for name, table in user_catalog.read_tables().items():
        try:
            found.append(_read_table(name, table))
        except InputError as error:
            errors.append(error)
    return found, errors


def new_own_model(
    name: str, model: str, values: Mapping[str, Any], *, lora_dir: str | None
) -> OwnModel:
    """An own model as it is stored: its files by their whole paths. Raises T2IError.

    Of another own model it takes the defaults that are not given. `lora_dir` is the folder whose
    LoRAs have names.
    """
    _check_name(name)
    request = build_request({"prompt": "-", "model": model, **values})
    values = {field: v for field in DEFAULT_FIELDS if (v := getattr(request, field)) is not None}
    model = request.model or model
    if source := find_own_model(model):
        model, values = source.model, {**source.values, **values}
    elif not catalog.find_in_catalog(model) and (catalog.is_file(model) or _exists(model)):
        model = os.path.abspath(expand_home(model))
    whole = {field: _with_whole_paths(value, lora_dir) for field, value in values.items()}
    for field, value in whole.items():
        _check_storable(field, FIELDS[field].json_value(value))
    _check_storable(_MODEL, model)
    return OwnModel(name=name, model=model, values=whole)


def settle_own_model(request: GenerateRequest) -> tuple[GenerateRequest, OwnModel | None]:
    """The request with the model, revision and parts that an own name stands for, and that entry.

    What the request names itself is kept. Raises T2IError, also for a file that is gone.
    """
    entry = find_own_model(request.model) if request.model else None
    if entry is None:
        return request, None
    unset = [name for name in _ADDRESS_FIELDS if getattr(request, name) is None]
    named = {name: entry.values[name] for name in unset if name in entry.values}
    check_own_source(entry)
    user_catalog.check_own_files(entry.name, named)
    return replace(request, model=entry.model, **named), entry


def check_own_source(entry: OwnModel) -> None:
    """Raise ModelError if the file or folder that an own name stands for is gone."""
    if os.path.isabs(entry.model) and not _exists(entry.model):
        raise ModelError(
            f"Your model {entry.name} is {entry.model}, which is not there.",
            hint=f"`t2i models add {entry.name} FILE --overwrite` names another file, "
            f"`t2i models remove {entry.name}` takes the name away.",
        )


def with_own_defaults(spec: ModelSpec, entry: OwnModel | None) -> ModelSpec:
    """The spec of the model that an own name stands for, with the defaults of its entry."""
    if entry is None:
        return spec
    settings = entry.settings
    shown = {name: settings[name] for name in MODEL_DEFAULTS if name in settings}
    return replace(spec, own_name=entry.name, defaults=tuple(settings.items()), **shown)


def _check_name(name: str) -> None:
    """Raise InputError for a name that means something else."""
    reason = None
    if not user_catalog.NAME_FORM.fullmatch(name):
        reason = "has up to 64 letters, digits, '.', '-' and '_', and begins with no '.' or '-'"
    elif hub_sources.has_weight_ending(name):
        reason = "does not end as a file of weights does"
    if reason:
        raise InputError(f"{name!r} cannot be the name of a model: one {reason}.", field="name")
    if known := catalog.find_in_catalog(name) or catalog.find_spelled(name):
        raise InputError(
            f"{name} means {known.name}, which t2i knows already; choose another name.",
            field="name",
        )
    letters = catalog.letters_and_digits(name)
    for other in user_catalog.read_tables():
        if other != name and catalog.letters_and_digits(other) == letters:
            raise InputError(
                f"{name} is another spelling of {other}, a model of yours; choose another name.",
                field="name",
            )


def _read_table(name: str, table: object) -> OwnModel:
    """The own model that a table of the file is. Raises InputError that names its line."""

    def error(key: str | None, message: str, hint: str | None = None) -> InputError:
        return user_catalog.table_error(name, key, message, hint)

    if not user_catalog.NAME_FORM.fullmatch(name) or hub_sources.has_weight_ending(name):
        raise error(None, "this cannot be the name of a model.", _RENAME)
    if known := catalog.find_in_catalog(name):
        raise error(None, f"t2i has a model {known.name} of its own.", _RENAME)
    if not isinstance(table, dict):
        raise error(None, "this is no table with a model and its defaults.")
    model = table.get(_MODEL)
    if not isinstance(model, str) or not model.strip():
        raise error(_MODEL, "model must be a file, a folder, or owner/name on the Hub.")
    values: dict[str, Any] = {}
    for key, given in table.items():
        if key == _MODEL:
            continue
        if key not in DEFAULT_FIELDS:
            raise error(key, f"{key} is no default of a model; {name_choices(key, DEFAULT_FIELDS)}")
        try:
            if (value := check_value(key, given)) is not None:
                build_request({"prompt": "-", key: value})
                values[key] = value
        except InputError as wrong:
            what = wrong.message if key in wrong.message else f"{key}: {wrong.message}"
            raise error(key, what) from wrong
    return OwnModel(name=name, model=model, values=values)


def _with_whole_paths(value: object, lora_dir: str | None) -> object:
    """The value, files and folders of this machine in it by their whole paths."""
    if isinstance(value, PartSource):
        found = not catalog.find_in_catalog(value.source) and _exists(value.source)
        path = os.path.abspath(expand_home(value.source))
        return value._replace(source=path) if found else value
    if isinstance(value, tuple):
        return tuple(_with_whole_paths(each, lora_dir) for each in value)
    if isinstance(value, Adapter) and (file := adapter_sources.local_file(value, lora_dir)):
        return replace(value, source=os.path.abspath(file))
    return value


def _exists(name: str) -> bool:
    return os.path.exists(expand_home(name))


def _check_storable(field: str, value: object) -> None:
    """Raise InputError for text that the file cannot hold, as a path that is no Unicode."""
    if isinstance(value, Mapping):
        for each in value.values():
            _check_storable(field, each)
    elif isinstance(value, list):
        for each in value:
            _check_storable(field, each)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{field} has characters that no file holds.", field=field) from error
