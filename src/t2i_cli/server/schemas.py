"""The fields of a request as JSON carries them, the same in every dialect but OpenAI's."""

from pydantic import BaseModel, ConfigDict, model_validator

from t2i_cli.request import GenerateRequest


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


class RequestFields(StrictModel):
    """GenerateRequest's fields, the prompt aside."""

    negative_prompt: str | None = None
    model: str | None = None
    revision: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None


class ImageRequest(RequestFields):
    """One image as it is asked for."""

    prompt: str

    def request(self) -> GenerateRequest:
        """The request that it means; raises InputError on bad values."""
        return GenerateRequest(**{name: getattr(self, name) for name in ImageRequest.model_fields})
