"""Vertex AI's dialect: what a custom container must answer, when Vertex runs this server in one.

The contract: cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements.
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BeforeValidator, Field

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.errors import InputError, T2IError
from t2i_cli.events import Notice
from t2i_cli.image_formats import ImageFormat
from t2i_cli.models.request_resolution import build_request
from t2i_cli.request import GenerateRequest
from t2i_cli.request_fields import FIELDS
from t2i_cli.server import responses
from t2i_cli.server.engine import Engine
from t2i_cli.server.jobs import ImageJob
from t2i_cli.server.options import ServerOptions
from t2i_cli.server.schemas import StrictModel, parse_fields, with_request_fields


def _seed(value: object) -> object:
    # As text it passes through Vertex's doubles whole.
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 20 else value


_ALIASES = {"text": "prompt"} | {
    known.vertex: name for name, known in FIELDS.items() if known.vertex
}
"""What Google's own container calls fields that t2i calls otherwise."""


@with_request_fields({alias: name for alias, name in _ALIASES.items()} | {n: n for n in FIELDS})
class Instance(StrictModel):
    """One image as it is asked for, by t2i's names or those of Google's own container."""

    seed: Annotated[int | None, BeforeValidator(_seed)] = None
    format: ImageFormat | None = None


class Parameters(Instance):
    """What holds for every instance that does not say otherwise."""

    lenient: bool = False


class PredictionsBody(StrictModel):
    """A request for predictions."""

    instances: Annotated[list[Instance], Field(min_length=1)]
    parameters: Parameters | None = None


def google_error(error: T2IError, status: int) -> dict[str, object]:
    """An error as Google's services have it, with t2i's own inside."""
    return {"error": {"code": status, "message": error.message, "t2i": error.to_json()}}


def vertex_router(engine: Engine, options: ServerOptions) -> APIRouter:
    """The two routes that Vertex named."""
    container = options.container
    api = APIRouter(tags=["vertex"])
    if container is None:
        return api

    @api.get(container.health_route, response_class=Response)
    async def health() -> Response:
        """200 once the model can serve."""
        return Response(status_code=200 if engine.ready else 503)

    @api.post(container.predict_route)
    async def predict(body: PredictionsBody, request: Request) -> Response:
        """An image for each instance, in their order.

        Where some of several fail, theirs are `{"error": …}`; where all do, so is the answer.
        """
        asked, formats = _asked(body)
        lenient = body.parameters is not None and body.parameters.lenient
        notes: list[Notice] = []
        requests = await engine.resolve_requests(
            asked, counted="instances", lenient=lenient, on_note=notes.append
        )
        job = engine.submit(requests, steps=False, notes=notes)
        outcomes: dict[int, GeneratedImage | Failure] = {}
        async with responses.cancel_on_disconnect(request, job):
            async for message in job:
                if isinstance(message, GeneratedImage | Failure):
                    outcomes[message.index] = message
        ordered = [outcomes[index] for index in range(len(asked))]
        failures = [outcome for outcome in ordered if isinstance(outcome, Failure)]
        if len(failures) == len(ordered):
            raise failures[0].error
        pairs = zip(ordered, formats, strict=True)
        told = await asyncio.gather(*(_prediction(job, *pair) for pair in pairs))
        return responses.json_response(
            responses.RawJson(f'{{"predictions": {responses.json_array(told).text}}}')
        )

    return api


def _asked(body: PredictionsBody) -> tuple[list[GenerateRequest], list[ImageFormat]]:
    """The requests, and the format of each one's image; raises InputError on bad values."""
    shared = {"format": "jpeg"} | _given(body.parameters)
    shared.pop("lenient", None)
    each = [shared | _given(instance) for instance in body.instances]
    formats = [values.pop("format") for values in each]
    if any("prompt" not in values for values in each):
        raise InputError("An instance has no prompt.", field="prompt")
    return [build_request(parse_fields(values)) for values in each], formats


def _given(asked: Instance | None) -> dict[str, Any]:
    """What is set, by t2i's names; raises InputError where two names tell different things."""
    values = asked.model_dump(exclude_none=True) if asked else {}
    for alias, name in _ALIASES.items():
        if alias in values:
            value = values.pop(alias)
            if values.setdefault(name, value) != value:
                raise InputError(f"{alias} and {name} differ; give one of them.", field=name)
    return values


async def _prediction(
    job: ImageJob, outcome: GeneratedImage | Failure, format: ImageFormat
) -> responses.RawJson:
    if isinstance(outcome, Failure):
        return responses.json_object({"error": outcome.error.to_json()})
    data = await responses.encode_base64_image(outcome, format)
    return responses.json_object(
        {"format": format} | responses.image_record(job, outcome), image=data
    )
