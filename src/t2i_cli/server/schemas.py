"""Pydantic models of request bodies, built from the table of request fields."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from t2i_cli.models.request_resolution import build_request
from t2i_cli.request import GenerateRequest
from t2i_cli.request_field import RequestField, whole_number
from t2i_cli.request_fields import FIELDS

Body = TypeVar("Body", bound="StrictModel")


class StrictModel(BaseModel):
    """An object that takes its fields in their own types, and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _with_whole_numbers(cls, value: object) -> object:
        if isinstance(value, dict):
            return {k: whole_number(v) for k, v in value.items()}
        return value


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
        return create_model(
            body.__name__,
            __base__=body,
            __module__=body.__module__,
            __doc__=body.__doc__,
            **definitions,
        )

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
        return build_request(parse_fields({name: getattr(self, name) for name in FIELDS}))
