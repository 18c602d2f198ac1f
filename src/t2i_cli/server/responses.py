"""HTTP responses shared by the dialects: statuses, JSON, encoded images, event streams."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from t2i_cli.backend import GeneratedImage
from t2i_cli.cost_limit import CostLimitError
from t2i_cli.errors import (
    AccessError,
    ContentFilteredError,
    InputError,
    InternalError,
    InterruptedRunError,
    ModelError,
    OutOfMemoryError,
    QuotaError,
    RemoteError,
    StorageError,
    T2IError,
    TerminatedError,
    TimedOutError,
)
from t2i_cli.image_formats import ImageFormat
from t2i_cli.output import metadata
from t2i_cli.server.batcher import RETRY_AFTER, BusyError
from t2i_cli.server.engine import NotServedError
from t2i_cli.server.jobs import ImageJob, Message
from t2i_cli.server.json_route import ENCODINGS, OversizedBodyError, UnsupportedBodyError
from t2i_cli.server.schemas import UNKNOWN_FIELD

STATUS_CODES: Mapping[type[T2IError], int] = {
    UnsupportedBodyError: 415,
    OversizedBodyError: 413,
    InputError: 400,
    # Access errors of this server at a hub or another server; its clients' are in security.py.
    AccessError: 502,
    CostLimitError: 402,
    QuotaError: 429,
    TimedOutError: 504,
    RemoteError: 502,
    OutOfMemoryError: 503,
    NotServedError: 404,
    ModelError: 500,
    ContentFilteredError: 422,
    StorageError: 500,
    InternalError: 500,
    # nginx's status for a request that the client closed.
    InterruptedRunError: 499,
    TerminatedError: 503,
}
"""The HTTP status of each kind of error."""
KEEPALIVE = b":\n\n"
"""A comment in an event stream, which keeps proxies from closing it."""
KEEPALIVE_INTERVAL = 10.0
"""Seconds without a message until a KEEPALIVE is sent."""
_CHUNK = 3 * 2**16
"""Bytes encoded at a time: a multiple of 3, which base64 turns into 4."""


def status_code(error: T2IError) -> int:
    """The HTTP status of an error."""
    return next((code for kind, code in STATUS_CODES.items() if isinstance(error, kind)), 500)


def error_headers(error: T2IError) -> dict[str, str]:
    """The headers of an error response: Retry-After, if a retry may help, or what is taken."""
    if isinstance(error, UnsupportedBodyError):
        return {"Accept-Encoding": ", ".join(ENCODINGS)}
    if isinstance(error, BusyError):
        return {"Retry-After": str(error.retry_after)}
    return {"Retry-After": str(RETRY_AFTER)} if status_code(error) in (429, 503) else {}


def json_response(
    body: object, code: int = 200, extra: Mapping[str, str] | None = None
) -> Response:
    """A JSON response in ASCII: lone surrogates, which UTF-8 cannot encode, are escaped."""
    text = body.text if isinstance(body, RawJson) else json.dumps(body)
    return Response(text, code, extra, "application/json")


@dataclass(frozen=True)
class RawJson:
    """Pre-serialised JSON: escaping megabytes of base64 is slow and holds the GIL."""

    text: str


def json_object(fields: Mapping[str, object], **raw: RawJson) -> RawJson:
    """A JSON object of `fields`, which must not be empty, and pre-serialised `raw` fields."""
    parts = [json.dumps(fields)[:-1], *(f'"{name}": {value.text}' for name, value in raw.items())]
    return RawJson(f"{', '.join(parts)}}}")


def json_array(items: Iterable[RawJson]) -> RawJson:
    """A JSON array of pre-serialised items."""
    return RawJson(f"[{', '.join(item.text for item in items)}]")


def validation_error(errors: Sequence[Mapping[str, Any]]) -> InputError:
    """The InputError for pydantic's first error about a body."""
    first = errors[0]
    path = [part for part in first["loc"] if part != "body"]
    if first["type"] == UNKNOWN_FIELD:
        path.append(first["ctx"]["field"])
    field = ".".join(map(str, path)) or None
    if first["type"] == UNKNOWN_FIELD:
        choices = first["ctx"]["choices"]
        return InputError(f"The field {field!r} is unknown; {choices}", field=field)
    if first["type"] == "missing":
        return InputError(f"The field {field!r} is missing.", field=field)
    if field is None:
        return InputError("The body is not a JSON object.")
    message = first["msg"].replace("Input should", f"{field} must", 1)
    return InputError(
        f"{message}." if message != first["msg"] else f"{field}: {message}.", field=field
    )


@asynccontextmanager
async def cancel_on_disconnect(request: Request, job: ImageJob) -> AsyncIterator[ImageJob]:
    """Cancel the job when its client disconnects, or when the context ends.

    The request's body must have been read.
    """

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    watcher = asyncio.create_task(watch())
    try:
        async with job:
            yield job
    finally:
        watcher.cancel()


async def wait_for_images(request: Request, job: ImageJob) -> list[GeneratedImage]:
    """All images of the job.

    Raises the first failure's T2IError, InterruptedRunError if the client disconnects.
    """
    async with cancel_on_disconnect(request, job):
        return await job.images()


async def with_keepalive(job: ImageJob) -> AsyncIterator[Message | None]:
    """The job's messages, and `None` after each KEEPALIVE_INTERVAL without one."""
    while True:
        try:
            yield await asyncio.wait_for(anext(job), KEEPALIVE_INTERVAL)
        except TimeoutError:
            yield None
        except StopAsyncIteration:
            return


class _JobStream(EventSourceResponse):
    """Server-sent events about a job.

    FastAPI's streams of path operations that yield do not fit: they send keep-alives, but do not
    cancel the job when its client disconnects, and would serialise the image's JSON again.
    """

    job: ImageJob

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with cancel_on_disconnect(Request(scope, receive), self.job):
            await super().__call__(scope, receive, send)


def event_stream(job: ImageJob, body: AsyncIterator[bytes]) -> StreamingResponse:
    """Server-sent events about a job, which is cancelled when the client disconnects."""
    # X-Accel-Buffering: nginx would buffer the events.
    response = _JobStream(body, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.job = job
    return response


async def encode_image(
    image: GeneratedImage, format: ImageFormat, quality: int | None = None
) -> bytes:
    """The image's file with metadata, encoded in a thread; `quality` from 0 to 100."""
    return await asyncio.to_thread(_encode, image, format, quality)


async def encode_base64_image(
    image: GeneratedImage, format: ImageFormat, quality: int | None = None
) -> RawJson:
    """The image's file with metadata, as a JSON string of base64, encoded in a thread."""
    return await asyncio.to_thread(lambda: json_base64(_encode(image, format, quality)))


def json_base64(data: bytes) -> RawJson:
    """Bytes as a JSON string of base64; in chunks, between which other threads get the GIL."""
    offsets = range(0, len(data), _CHUNK)
    text = b"".join(base64.b64encode(data[offset : offset + _CHUNK]) for offset in offsets)
    return RawJson(f'"{text.decode()}"')


def _encode(image: GeneratedImage, format: ImageFormat, quality: int | None) -> bytes:
    return metadata.image_file_bytes(image, format, quality)


def generation_record(image: GeneratedImage) -> dict[str, object]:
    """An image's resolved request, generation info and seconds, as every dialect returns them."""
    return {
        "request": image.request.to_json(),
        "lock": image.info.to_json(),
        "seconds": round(image.seconds, 3),
        **({} if image.memory is None else {"memory": dict(image.memory)}),
    }


def image_record(job: ImageJob, image: GeneratedImage, **position: object) -> dict[str, object]:
    """The metadata beside an image: `t2i`, with its `position`, and the notes, if any."""
    notes = job.notes(image.index)
    return {"t2i": position | generation_record(image)} | ({"notes": notes} if notes else {})


def format_sse(event: str, data: Mapping[str, object], **raw: RawJson) -> bytes:
    """One server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    return format_sse_event(event=event, data_str=json_object(data, **raw).text)
