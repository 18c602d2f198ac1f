"""Pydantic models of request bodies, built from the table of request fields."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic_core import PydanticCustomError

from t2i_cli.errors import InputError
from t2i_cli.known_names import name_choices
from t2i_cli.models.request_resolution import build_request
from t2i_cli.request import GenerateRequest
from t2i_cli.request_field import RequestField, whole_number
from t2i_cli.request_fields import FIELDS

Body = TypeVar("Body", bound="StrictModel")


UNKNOWN_FIELD = "unknown_field"
"""The type of StrictModel's error about a field; its context has `field` and `choices`."""


class StrictModel(BaseModel):
    """An object that takes its fields in their own types, and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_names: ClassVar[Mapping[str, str]] = {}
    """Names of request fields in this body, to names in the table of fields."""

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        # pydantic's own error does not tell which fields there are, and there is one for each of
        # 100,000 unknown fields, which would take a second.
        for name in value:
            if name not in cls.model_fields:
                # Context must be encodable, which a name of escapes need not be.
                shown = name.encode(errors="backslashreplace").decode()
                context = {"field": shown, "choices": name_choices(name, cls.model_fields)}
                raise PydanticCustomError(UNKNOWN_FIELD, "unknown field", context)
        # JSON has one number type, and Vertex AI passes every number on as a double.
        return {name: whole_number(each) for name, each in value.items()}

    def request_values(self) -> dict[str, Any]:
        """The request fields that have a value, by the table's names.

        A value that stands for "not set" is none, as a seed of -1. Raises InputError if two names
        of one field differ in value.
        """
        values: dict[str, Any] = {}
        given: dict[str, str] = {}
        for alias, name in self.request_names.items():
            if FIELDS[name].is_unset(value := getattr(self, alias)):
                continue
            if name in values and values[name] != value:
                raise InputError(
                    f"{given[name]} and {alias} differ; give one of them.", field=given[name]
                )
            values[name] = value
            given.setdefault(name, alias)
        return values


def with_request_fields(names: Mapping[str, str]) -> Callable[[type[Body]], type[Body]]:
    """A class decorator that adds request fields to a body.

    `names` maps JSON names to names in the table of fields. Fields that the body declares are kept.
    Ranges are checked by GenerateRequest, so that errors are the same for every source.
    """

    def build(body: type[Body]) -> type[Body]:
        definitions: dict[str, Any] = {
            json_name: (_annotation(FIELDS[name]), Field(None, description=FIELDS[name].help))
            for json_name, name in names.items()
            if json_name not in body.model_fields
        }
        made = create_model(
            body.__name__,
            __base__=body,
            __module__=body.__module__,
            __doc__=body.__doc__,
            **definitions,
        )
        made.request_names = dict(names)
        return made

    return build


def _annotation(known: RequestField) -> object:
    return Any if known.parse else known.kind | None


def parse_fields(values: Mapping[str, object]) -> dict[str, object]:
    """Parse a body's values, by names of the table of fields. Raises InputError."""
    return {
        name: parse(value) if value is not None and (parse := FIELDS[name].parse) else value
        for name, value in values.items()
    }


@with_request_fields({name: name for name in FIELDS})
class ImageRequest(StrictModel):
    """One image as it is asked for."""

    prompt: str

    def request(self) -> GenerateRequest:
        """The GenerateRequest of the body. Raises InputError on bad values."""
        return build_request(parse_fields(self.request_values()))


def names_by_field(names: Mapping[str, str]) -> dict[str, list[str]]:
    """The names of each field of the table, from the fields by name; the first is its main one."""
    found: dict[str, list[str]] = {}
    for alias, name in names.items():
        found.setdefault(name, []).append(alias)
    return found
