"""OpenAI's dialect: /v1/images/generations and /v1/models, compatible with its client.

Beside OpenAI's fields it accepts t2i's, by their names, those of the dialect "t2i" and the aliases
in the table of fields: those that open-source servers have in common. Every image has its metadata
under `t2i`, and the notes on its request.
"""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Request, Response
from PIL.Image import Image
from pydantic import Field, model_validator

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.errors import InputError, T2IError
from t2i_cli.events import Notice, Preview
from t2i_cli.image_formats import ImageFormat
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models.request_resolution import build_request
from t2i_cli.request import GenerateRequest, expand_seeds, parse_size
from t2i_cli.request_fields import FIELDS, SIZE
from t2i_cli.server import responses
from t2i_cli.server.api.predict import IMAGE_RESPONSE
from t2i_cli.server.engine import Engine
from t2i_cli.server.image_store import ImageStore
from t2i_cli.server.jobs import ImageJob
from t2i_cli.server.json_route import json_route, name_sent_field
from t2i_cli.server.options import ServerOptions
from t2i_cli.server.schemas import (
    StrictModel,
    names_by_field,
    parse_fields,
    with_request_fields,
)

_SIZED = ("width", "height")
_FIELD_NAMES = {
    alias: name
    for name, known in FIELDS.items()
    if "t2i" in known.dialects
    for alias in (known.dialects["t2i"], name, *known.aliases)
    if alias != SIZE
}
"""Names of OpenAI's API, open servers and t2i, to t2i's."""
_SENT_NAMES = (
    names_by_field(_FIELD_NAMES) | {name: [SIZE, name] for name in _SIZED} | {"count": ["n"]}
)
"""The names that a client can use for each of t2i's fields."""
_NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""The `usage` that OpenAI's client expects of streamed images; t2i counts no tokens."""


@with_request_fields(_FIELD_NAMES)
class GenerationBody(StrictModel):
    """OpenAI's fields, in the values that can be honoured here, and the open servers'."""

    prompt: str
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] = 1
    size: str = "auto"
    quality: Literal["auto", "standard"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto"] = "auto"
    output_format: ImageFormat = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    response_format: Literal["b64_json", "url"] = "b64_json"
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0
    user: str | None = None
    safety_identifier: str | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        # In OpenAI's API null means the default, for any field.
        if isinstance(value, dict):
            return {name: v for name, v in value.items() if v is not None}
        return value

    def request(self, spec: ModelSpec) -> GenerateRequest:
        """The GenerateRequest of each image. Raises InputError for unsupported combinations."""
        if self.output_compression is not None and self.output_format == "png":
            raise InputError("A PNG is exact; JPEG and WebP compress.", field="output_compression")
        if self.partial_images and not self.stream:
            raise InputError("Partial images need stream.", field="partial_images")
        if self.stream and self.response_format == "url":
            raise InputError("A stream carries images, no links.", field="response_format")
        values = self.request_values() | {"prompt": self.prompt, "model": self.model}
        if self.size != "auto":
            for name, side in zip(_SIZED, parse_size(self.size), strict=True):
                if values.setdefault(name, side) != side:
                    raise InputError(f"size and {name} differ; give one of them.", field=name)
        if self.true_cfg_scale is not None:
            self._add_true_cfg(values, spec)
        return build_request(parse_fields(values))

    def _add_true_cfg(self, values: dict[str, Any], spec: ModelSpec) -> None:
        """Take true_cfg_scale as the guidance scale, for pipelines that call it so."""
        if spec.guidance_argument != "true_cfg_scale":
            raise InputError(f"{spec.name} takes no true_cfg_scale.", field="true_cfg_scale")
        if values.setdefault("guidance_scale", self.true_cfg_scale) != self.true_cfg_scale:
            raise InputError(
                "guidance_scale and true_cfg_scale differ; give one.", field="guidance_scale"
            )


def openai_error(error: T2IError, status: int) -> dict[str, object]:
    """OpenAI's error object, with t2i's code, and the hint in an extra field."""
    types = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = types.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": getattr(error, "field", None) or None,
            "code": error.code,
            "hint": error.hint,
        }
    }


def openai_router(engine: Engine, options: ServerOptions) -> APIRouter:
    """POST /v1/images/generations, GET /v1/images/files/NAME, GET /v1/models and /v1/models/ID."""
    route = json_route(options.max_body, names=_SENT_NAMES)
    api = APIRouter(prefix="/v1", tags=["openai"], route_class=route)
    store = ImageStore()
    created = int(time.time())

    @api.post("/images/generations", responses={200: {"content": {"text/event-stream": {}}}})
    async def generate(body: GenerationBody, request: Request) -> Response:
        """Make images; with `stream`, server-sent events that show them on their way."""
        template = body.request(await engine.wait_described())
        notes: list[Notice] = []
        resolved = await engine.resolve_requests(
            [template] * body.n, counted="n", on_note=notes.append
        )
        seeds = [] if template.seed is None else [template.seed]
        requests = expand_seeds(resolved[0], seeds, body.n)
        job = engine.submit(requests, previews=body.partial_images, steps=False, notes=notes)
        if body.stream:
            return responses.event_stream(job, _events(job, body))
        images = await responses.wait_for_images(request, job)
        content = {
            "created": int(time.time()),
            "background": "opaque",
            "output_format": body.output_format,
            "size": _size(images[0].image),
        }
        data = await asyncio.gather(*(image_object(image, job, body, request) for image in images))
        return responses.json_response(
            responses.json_object(content, data=responses.json_array(data))
        )

    async def image_object(
        generated: GeneratedImage, job: ImageJob, body: GenerationBody, request: Request
    ) -> responses.RawJson:
        record = responses.image_record(job, generated)
        # OpenAI's compression is the encoder's quality, from 0 to 100.
        encoding = body.output_format, body.output_compression
        if body.response_format == "b64_json":
            return responses.json_object(
                record, b64_json=await responses.encode_base64_image(generated, *encoding)
            )
        name = store.put(await responses.encode_image(generated, *encoding), body.output_format)
        return responses.json_object({"url": str(request.url_for("image", name=name))} | record)

    @api.get("/images/files/{name}", response_class=Response, responses={200: IMAGE_RESPONSE})
    async def image(name: str) -> Response:
        """An image that a `url` leads to, while it is kept."""
        if (found := store.get(name)) is None:
            raise HTTPException(404, "there is no such image, or it has expired")
        stored, seconds = found
        headers = {"Cache-Control": f"private, max-age={int(seconds)}"}
        return Response(stored.data, media_type=f"image/{stored.format}", headers=headers)

    @api.get("/models")
    async def models() -> Response:
        """The one model that is served."""
        await engine.wait_described()
        return responses.json_response({"object": "list", "data": [model_object()]})

    @api.get("/models/{id:path}")
    async def model(id: str) -> Response:
        """The model of that name."""
        await engine.wait_described()
        engine.check_model(id)
        return responses.json_response(model_object())

    def model_object() -> dict[str, object]:
        named = {"id": engine.shown_name, "object": "model"}
        return {**named, "created": created, "owned_by": "t2i"}

    return api


async def _events(job: ImageJob, body: GenerationBody) -> AsyncIterator[bytes]:
    """The job's previews and images as OpenAI's server-sent events; the first failure ends them."""
    common = {
        "created_at": int(time.time()),
        "quality": "auto",
        "background": "opaque",
        "output_format": body.output_format,
    }
    preview_counts = [0] * len(job.requests)
    async for message in responses.with_keepalive(job):
        match message:
            case None:
                yield responses.KEEPALIVE
                continue
            case Preview(index=index, image=image):
                data = await asyncio.to_thread(_encode_preview, image, body.output_format)
                kind = "image_generation.partial_image"
                progress = {"index": index, "step": message.step, "steps": message.steps}
                extra = {"partial_image_index": preview_counts[index], "t2i": progress}
                preview_counts[index] += 1
            case GeneratedImage(index=index, image=image):
                data = await responses.encode_base64_image(
                    message, body.output_format, body.output_compression
                )
                kind = "image_generation.completed"
                extra = {"usage": _NO_TOKENS} | responses.image_record(job, message, index=index)
            case Failure(error=error):
                name_sent_field(error, _SENT_NAMES, body.model_fields_set)
                yield responses.format_sse(
                    "error", openai_error(error, responses.status_code(error))
                )
                return
            case _:
                continue
        content = {"type": kind, "size": _size(image)} | common | extra
        yield responses.format_sse(kind, content, b64_json=data)


def _encode_preview(image: Image, format: ImageFormat) -> responses.RawJson:
    """A preview as a JSON string of base64: an image file without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format)
    return responses.json_base64(buffer.getvalue())


def _size(image: Image) -> str:
    return f"{image.width}x{image.height}"
