"""Vertex AI's dialect: the routes of a custom container, when Vertex AI runs this server in one.

The contract: cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements.
"""

import asyncio
import re
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
from t2i_cli.server.json_route import json_route
from t2i_cli.server.options import ServerOptions
from t2i_cli.server.schemas import (
    StrictModel,
    names_by_field,
    parse_fields,
    with_request_fields,
)


def _parse_seed(value: object) -> object:
    # As a string it is exact: Vertex AI passes numbers on as doubles.
    return int(value) if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value) else value


_WHOLE_NUMBER = re.compile(r"-1|[0-9]{1,19}")


_ALIASES = {"text": "prompt"} | {
    known.vertex: name for name, known in FIELDS.items() if known.vertex
}
"""Field names of Google's own container, to t2i's names."""


@with_request_fields({name: name for name in FIELDS} | _ALIASES)
class Instance(StrictModel):
    """One image as it is asked for, by t2i's names or those of Google's own container."""

    seed: Annotated[int | None, BeforeValidator(_parse_seed)] = None
    format: ImageFormat | None = None


class Parameters(Instance):
    """What holds for every instance that does not say otherwise."""

    lenient: bool = False


class PredictionsBody(StrictModel):
    """A request for predictions."""

    instances: Annotated[list[Instance], Field(min_length=1)]
    parameters: Parameters | None = None


def google_error(error: T2IError, status: int) -> dict[str, object]:
    """An error object as Google's APIs have it, with t2i's inside."""
    return {"error": {"code": status, "message": error.message, "t2i": error.to_json()}}


def vertex_router(engine: Engine, options: ServerOptions) -> APIRouter:
    """The health and prediction routes that Vertex AI configures."""
    container = options.container
    route = json_route(
        options.max_body,
        max_items={"instances": engine.limits.images},
        names=names_by_field(Instance.request_names),
    )
    api = APIRouter(tags=["vertex"], route_class=route)
    if container is None:
        return api

    @api.get(container.health_route, response_class=Response)
    async def health() -> Response:
        """200 once the model can serve; else 503, with the reason if it never will."""
        if engine.failure:
            return responses.json_response(google_error(engine.failure, 503), 503)
        return Response(status_code=200 if engine.ready else 503)

    @api.post(container.predict_route)
    async def predict(body: PredictionsBody, request: Request) -> Response:
        """An image for each instance, in their order.

        Where some of several fail, theirs are `{"error": …}`; where all do, so is the answer.
        """
        unresolved, formats = _parse_body(body)
        lenient = body.parameters is not None and body.parameters.lenient
        notes: list[Notice] = []
        requests = await engine.resolve_requests(
            unresolved, counted="instances", lenient=lenient, on_note=notes.append
        )
        job = engine.submit(requests, steps=False, notes=notes)
        outcomes: dict[int, GeneratedImage | Failure] = {}
        async with responses.cancel_on_disconnect(request, job):
            async for message in job:
                if isinstance(message, GeneratedImage | Failure):
                    outcomes[message.index] = message
        ordered = [outcomes[index] for index in range(len(unresolved))]
        failures = [outcome for outcome in ordered if isinstance(outcome, Failure)]
        if len(failures) == len(ordered):
            raise failures[0].error
        pairs = zip(ordered, formats, strict=True)
        predictions = await asyncio.gather(*(_prediction(job, *pair) for pair in pairs))
        return responses.json_response(
            responses.RawJson(f'{{"predictions": {responses.json_array(predictions).text}}}')
        )

    return api


def _parse_body(body: PredictionsBody) -> tuple[list[GenerateRequest], list[ImageFormat]]:
    """The requests and the image format of each. Raises InputError on bad values."""
    shared = {"format": "jpeg"} | _fields_set(body.parameters)
    all_fields = [shared | _fields_set(instance) for instance in body.instances]
    formats = [values.pop("format") for values in all_fields]
    if any("prompt" not in values for values in all_fields):
        raise InputError("An instance has no prompt.", field="prompt")
    return [build_request(parse_fields(values)) for values in all_fields], formats


def _fields_set(instance: Instance | None) -> dict[str, Any]:
    """The fields that are set, by t2i's names. Raises InputError if two names differ in value."""
    if instance is None:
        return {}
    return instance.request_values() | ({"format": instance.format} if instance.format else {})


async def _prediction(
    job: ImageJob, outcome: GeneratedImage | Failure, format: ImageFormat
) -> responses.RawJson:
    if isinstance(outcome, Failure):
        return responses.json_object({"error": outcome.error.to_json()})
    data = await responses.encode_base64_image(outcome, format)
    return responses.json_object(
        {"format": format} | responses.image_record(job, outcome), image=data
    )
