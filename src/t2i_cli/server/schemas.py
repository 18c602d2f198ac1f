"""The fields of a request as JSON carries them, from the table of fields."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from t2i_cli.models.request_resolution import build_request
from t2i_cli.request import GenerateRequest
from t2i_cli.request_fields import FIELDS, RequestField

Body = TypeVar("Body", bound="StrictModel")


class StrictModel(BaseModel):
    """An object that takes its fields in their own types, and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _with_whole_numbers(cls, value: object) -> object:
        # JSON has one kind of number, and Vertex hands on every one as a double.
        return {k: _whole(v) for k, v in value.items()} if isinstance(value, dict) else value


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def with_request_fields(names: Mapping[str, str]) -> Callable[[type[Body]], type[Body]]:
    """Has a body take fields of a request, by the names that lead to their own in the table.

    Fields that it declares itself stay.
    Ranges are left to the request itself, whose sentences are the same wherever it came from.
    """

    def build(body: type[Body]) -> type[Body]:
        added: dict[str, Any] = {
            wire: (_kind(FIELDS[name]), Field(None, description=FIELDS[name].help))
            for wire, name in names.items()
            if wire not in body.model_fields
        }
        return create_model(
            body.__name__, __base__=body, __module__=body.__module__, __doc__=body.__doc__, **added
        )

    return build


def _kind(known: RequestField) -> object:
    return Any if known.parse else known.kind | None


def parse_fields(values: Mapping[str, object]) -> dict[str, object]:
    """Fields of a body, by their own names, as a request has them; raises InputError."""
    return {
        name: parse(value) if value is not None and (parse := FIELDS[name].parse) else value
        for name, value in values.items()
    }


@with_request_fields({name: name for name in FIELDS})
class ImageRequest(StrictModel):
    """One image as it is asked for."""

    prompt: str

    def request(self) -> GenerateRequest:
        """The request that it means; raises InputError on bad values."""
        return build_request(parse_fields({name: getattr(self, name) for name in FIELDS}))
