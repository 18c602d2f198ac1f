"""t2i's own dialect: complete requests in, all events and images out as server-sent events."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Response
from PIL.Image import Image
from pydantic import Field

from t2i_cli import __version__, image_formats
from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.errors import InputError
from t2i_cli.events import EVENT_NAMES, Notice, Preview
from t2i_cli.image_formats import ImageFormat
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import adapter_sources
from t2i_cli.models.example_prompts import example_prompts
from t2i_cli.models.noise_schedules import usable_schedules
from t2i_cli.models.prompt_support import prompt_facts
from t2i_cli.models.scheduler_support import schedulers_of
from t2i_cli.models.step_cache_support import step_cache_complaint
from t2i_cli.request_fields import MODEL_DEFAULTS
from t2i_cli.server import responses
from t2i_cli.server.engine import Engine
from t2i_cli.server.jobs import ImageJob
from t2i_cli.server.json_route import json_route
from t2i_cli.server.options import ServerOptions
from t2i_cli.server.schemas import ImageRequest, StrictModel


class GenerateBody(StrictModel):
    """Images to make in one job; `previews` of each at most."""

    requests: Annotated[list[ImageRequest], Field(min_length=1)]
    lenient: bool = False
    previews: Annotated[int, Field(ge=0, le=100)] = 0
    format: ImageFormat = "png"


def t2i_router(engine: Engine, options: ServerOptions) -> APIRouter:
    """GET /t2i/v1/model and /t2i/v1/workers, POST /t2i/v1/generate and /t2i/v1/jobs/ID/cancel."""
    route = json_route(options.max_body, max_items={"requests": engine.limits.images})
    api = APIRouter(prefix="/t2i/v1", tags=["t2i"], route_class=route)

    @api.get("/model")
    async def model() -> Response:
        """The served model: its own settings, and what it takes."""
        spec = await engine.wait_described()
        return responses.json_response(
            await asyncio.to_thread(_model_object, spec)
            | {"name": engine.shown_name}
            | {"limits": asdict(engine.limits), "auth": options.api_key is not None}
            | {"styles": engine.styles.names if engine.styles else []}
        )

    @api.get("/workers")
    async def workers() -> Response:
        """The backend's workers: number, state, machine, and what each number has made."""
        reports = engine.worker_reports()
        return responses.json_response({"workers": [asdict(report) for report in reports]})

    @api.post(
        "/generate",
        response_class=Response,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def generate(body: GenerateBody) -> Response:
        """Make images: `accepted`, then what happens, an `image` or `failure` each, and `done`."""
        notes: list[Notice] = []
        unresolved = [image_request.request() for image_request in body.requests]
        requests = await engine.resolve_requests(
            unresolved, counted="requests", lenient=body.lenient, on_note=notes.append
        )
        job = engine.submit(requests, previews=body.previews, notes=notes)
        return responses.event_stream(job, _events(engine, job, body.format))

    @api.post("/jobs/{id}/cancel", status_code=204)
    async def cancel(id: str) -> Response:
        """Give up what is unfinished of a job."""
        job = engine.job(id)
        if job is None:
            error = InputError(f"There is no unfinished job {id!r}.", field="job")
            return responses.json_response({"error": error.to_json()}, 404)
        job.cancel()
        return Response(status_code=204)

    return api


def _model_object(spec: ModelSpec) -> dict[str, object]:
    return {
        "name": spec.shown_name,
        "repo": spec.repo,
        "revision": spec.revision,
        **{name: getattr(spec, name) for name in MODEL_DEFAULTS},
        "multiple": spec.multiple,
        "negative_prompt": spec.negative_prompt,
        "guidance": spec.guidance_argument is not None,
        "schedulers": schedulers_of(spec),
        "schedules": usable_schedules(spec.flow),
        "loras": sorted(adapter_sources.files_in_folder(spec.adapter_folder)),
        "step_cache": step_cache_complaint(spec.name, spec.pipeline) is None,
        **prompt_facts(spec),
        "refuses": [field for field, _ in spec.refuses],
        "formats": list(image_formats.EXTENSIONS),
        "examples": example_prompts(spec),
        "version": __version__,
    }


async def _events(engine: Engine, job: ImageJob, format: ImageFormat) -> AsyncIterator[bytes]:
    """The job's messages as server-sent events."""
    requests = [request.to_json() for request in job.shown_requests]
    yield responses.format_sse(
        "accepted", {"job": job.id, "requests": requests, "waiting": engine.waiting}
    )
    images = 0
    async for message in responses.with_keepalive(job):
        match message:
            case None:
                yield responses.KEEPALIVE
            case GeneratedImage():
                images += 1
                data = await responses.encode_base64_image(message, format)
                width, height = message.size
                fields = {
                    "index": message.index,
                    "format": format,
                    "width": width,
                    "height": height,
                }
                yield responses.format_sse(
                    "image", fields | responses.generation_record(message), image=data
                )
            case Failure(index=index, error=error):
                request = requests[index]
                yield responses.format_sse(
                    "failure", {"index": index, "request": request, "error": error.to_json()}
                )
            case Preview(index=index, step=step, steps=steps, image=image):
                preview = await asyncio.to_thread(_data_url, image)
                yield responses.format_sse(
                    "preview", {"index": index, "step": step, "steps": steps, "image": preview}
                )
            case _:
                yield responses.format_sse(EVENT_NAMES[type(message)], asdict(message))
    yield responses.format_sse("done", {"images": images, "failures": len(requests) - images})


def _data_url(image: Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
