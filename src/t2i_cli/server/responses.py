"""What the dialects share on the wire: statuses, error bodies, images as bytes, event streams."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from t2i_cli.backend import GeneratedImage
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

STATUS_CODES: Mapping[type[T2IError], int] = {
    InputError: 400,
    # Of the server's own, with a hub or another server; its client's are told by guard.py.
    AccessError: 502,
    QuotaError: 429,
    TimedOutError: 504,
    RemoteError: 502,
    OutOfMemoryError: 503,
    NotServedError: 404,
    ModelError: 500,
    ContentFilteredError: 422,
    StorageError: 500,
    InternalError: 500,
    # As nginx has it: the client closed the request.
    InterruptedRunError: 499,
    TerminatedError: 503,
}
"""The HTTP status of each kind of error."""
KEEPALIVE = b":\n\n"
"""A comment in an event stream: it keeps proxies awake."""
KEEPALIVE_INTERVAL = 10.0
"""Seconds."""
_PIECE = 3 * 2**16
"""Bytes; base64 makes four of three."""


def status_code(error: T2IError) -> int:
    """The HTTP status that an error is answered with."""
    return next((code for kind, code in STATUS_CODES.items() if isinstance(error, kind)), 500)


def error_headers(error: T2IError) -> dict[str, str]:
    """The headers that go with an error: when to try again."""
    if isinstance(error, BusyError):
        return {"Retry-After": str(error.retry_after)}
    return {"Retry-After": str(RETRY_AFTER)} if status_code(error) in (429, 503) else {}


def json_response(
    body: object, code: int = 200, extra: Mapping[str, str] | None = None
) -> Response:
    """JSON in ASCII: text that no encoding can hold, as a lone surrogate, cannot make it fail."""
    text = body.text if isinstance(body, RawJson) else json.dumps(body)
    return Response(text, code, extra, "application/json")


@dataclass(frozen=True)
class RawJson:
    """JSON that is made already. To look for what is to be escaped in an image's base64 takes
    longer than all else, and holds Python's lock, which the pipeline waits for.
    """

    text: str


def json_object(fields: Mapping[str, object], **ready: RawJson) -> RawJson:
    """The object of these fields, of which there must be some, and of those that are `ready`."""
    parts = [json.dumps(fields)[:-1], *(f'"{name}": {one.text}' for name, one in ready.items())]
    return RawJson(f"{', '.join(parts)}}}")


def json_array(items: Iterable[RawJson]) -> RawJson:
    """The array of what is made already."""
    return RawJson(f"[{', '.join(item.text for item in items)}]")


def validation_error(errors: Sequence[Mapping[str, Any]]) -> InputError:
    """What pydantic found wrong with a body, its first error, as one of ours."""
    first = errors[0]
    place = [part for part in first["loc"] if part != "body"]
    field = ".".join(map(str, place)) or None
    if first["type"] == "json_invalid":
        return InputError(f"The body is not valid JSON: {first['ctx']['error']}.")
    if first["type"] == "extra_forbidden":
        return InputError(f"The field {field!r} is unknown.", field=field)
    if first["type"] == "missing":
        return InputError(f"The field {field!r} is missing.", field=field)
    if field is None:
        return InputError("The body is not a JSON object.")
    said = first["msg"].replace("Input should", f"{field} must", 1)
    return InputError(f"{said}." if said != first["msg"] else f"{field}: {said}.", field=field)


@asynccontextmanager
async def cancel_on_disconnect(request: Request, job: ImageJob) -> AsyncIterator[ImageJob]:
    """The job, for as long as its client is there: if that goes away, the job is cancelled.

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
    """All images of the job. Raises the first failure's T2IError, StoppedError without a client."""
    async with cancel_on_disconnect(request, job):
        return await job.images()


async def with_keepalive(job: ImageJob) -> AsyncIterator[Message | None]:
    """The job's messages, and `None` whenever there is none for a while: time for a PING."""
    while True:
        try:
            yield await asyncio.wait_for(anext(job), KEEPALIVE_INTERVAL)
        except TimeoutError:
            yield None
        except StopAsyncIteration:
            return


class _JobStream(EventSourceResponse):
    """Server-sent events about a job.

    fastapi's own stream of a path operation that yields cannot do it: it pings by itself, but a
    client that goes away cancels no job, and what it yields it encodes as JSON anew.
    """

    job: ImageJob

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with cancel_on_disconnect(Request(scope, receive), self.job):
            await super().__call__(scope, receive, send)


def event_stream(job: ImageJob, body: AsyncIterator[bytes]) -> StreamingResponse:
    """Server-sent events about a job, which is cancelled when the client goes away."""
    # Without the second header nginx would keep events back.
    found = _JobStream(body, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    found.job = job
    return found


async def encode_image(
    image: GeneratedImage, format: ImageFormat, quality: int | None = None
) -> bytes:
    """The bytes of the image's file, its records inside; encoded off the event loop."""
    return await asyncio.to_thread(_encoded, image, format, quality)


async def encode_base64_image(
    image: GeneratedImage, format: ImageFormat, quality: int | None = None
) -> RawJson:
    """The same in base64."""
    return await asyncio.to_thread(lambda: json_base64(_encoded(image, format, quality)))


def json_base64(data: bytes) -> RawJson:
    """Bytes as a JSON string of base64; by pieces, between which other threads have their turn."""
    pieces = range(0, len(data), _PIECE)
    text = b"".join(base64.b64encode(data[at : at + _PIECE]) for at in pieces)
    return RawJson(f'"{text.decode()}"')


def _encoded(image: GeneratedImage, format: ImageFormat, quality: int | None) -> bytes:
    return metadata.image_file_bytes(image, format, quality)


def generation_record(image: GeneratedImage) -> dict[str, object]:
    """What made the image, as every dialect tells it."""
    return {
        "request": image.request.to_json(),
        "lock": asdict(image.info),
        "seconds": round(image.seconds, 3),
    }


def image_record(job: ImageJob, image: GeneratedImage, **place: object) -> dict[str, object]:
    """What stands beside an image: its echo, with its `place`, and the notes, if there are any."""
    notes = job.notes(image.index)
    return {"t2i": place | generation_record(image)} | ({"notes": notes} if notes else {})


def format_sse(event: str, data: Mapping[str, object], **ready: RawJson) -> bytes:
    """One server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    return format_sse_event(event=event, data_str=json_object(data, **ready).text)
