"""The routes that take JSON: content type, compression, parsing off the event loop, counts.

A custom route class, as FastAPI's documentation describes it under "Custom Request and APIRoute".
"""

import asyncio
import json
import zlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope

from t2i_cli.errors import InputError, T2IError
from t2i_cli.request_field import MAX_PROMPT

PARSE_ON_LOOP = 2**16
"""Bytes of the longest body that is parsed on the event loop: a matter of milliseconds."""
MARKS_PER_IMAGE = 2 * MAX_PROMPT + 1_000
"""Commas and opening brackets that a body may have for each image: prompts may consist of them."""
ENCODINGS = ("gzip", "deflate")
"""Content codings of bodies that are taken."""

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class UnsupportedBodyError(InputError):
    """A body of a media type or content coding that no route takes; status 415."""


class OversizedBodyError(InputError):
    """A body that is larger than the limit once it is decompressed; status 413."""


class _JsonRequest(Request):
    """A request whose body is decompressed and parsed already."""

    def __init__(self, scope: Scope, receive: Receive, content: bytes, parsed: object) -> None:
        super().__init__(scope, receive)
        self._content = content
        self._parsed = parsed

    async def body(self) -> bytes:
        """The body, decompressed."""
        return self._content

    async def json(self) -> Any:  # noqa: ANN401 - as the method that it replaces
        """The parsed body."""
        return self._parsed


def json_route(
    max_body: int,
    *,
    max_items: Mapping[str, int] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
) -> type[APIRoute]:
    """A class of routes whose POST methods take JSON of at most `max_body` bytes.

    `max_items` limits lists of the body, by name, before they are validated. `names` are the names
    that a client can use for t2i's fields: an error then names the field that the client sent.
    """

    lists = max_items or {}
    # A thread that parses holds the GIL; with several the event loop waits for one after another.
    one_at_a_time = asyncio.Semaphore(1)

    class JsonRoute(APIRoute):
        """A route that takes JSON."""

        def get_route_handler(self) -> _Handler:
            """The route's handler, which gets the parsed body."""
            handler = super().get_route_handler()
            if "POST" not in (self.methods or ()):
                return handler

            async def handle(request: Request) -> Response:
                coding = _check_headers(request)
                data = await request.body()
                if self.body_field is None:
                    return await handler(request)
                parse = partial(_parse, data, coding, max_body, lists)
                on_loop = coding is None and len(data) <= PARSE_ON_LOOP
                if on_loop:
                    content, parsed = parse()
                else:
                    async with one_at_a_time:
                        content, parsed = await asyncio.to_thread(parse)
                try:
                    return await handler(
                        _JsonRequest(request.scope, request.receive, content, parsed)
                    )
                except T2IError as error:
                    name_sent_field(error, names or {}, _names_in(parsed, lists))
                    raise

            return handle

    return JsonRoute


def name_sent_field(
    error: T2IError, names: Mapping[str, Sequence[str]], sent: frozenset[str] | set[str]
) -> None:
    """Have the error name its field as the client did: by that of the `names` that was `sent`."""
    field = getattr(error, "field", None)
    if field is None or field in sent or field not in names:
        return
    error.field = next(  # type: ignore[attr-defined]
        (name for name in names[field] if name in sent), names[field][0]
    )


def _check_headers(request: Request) -> str | None:
    """The content coding of the body, if any. Raises UnsupportedBodyError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().casefold()
    if kind != "application/json":
        raise UnsupportedBodyError(
            "The body must be JSON.", hint="Send Content-Type: application/json."
        )
    coding = request.headers.get("content-encoding", "").strip().casefold()
    if coding in {"", "identity"}:
        return None
    coding = coding.removeprefix("x-")
    if coding not in ENCODINGS:
        raise UnsupportedBodyError(
            f"The content coding {coding!r} is not taken.",
            hint=f"Send the body as it is, or as {' or '.join(ENCODINGS)}.",
        )
    return coding


def _parse(
    data: bytes, coding: str | None, limit: int, max_items: Mapping[str, int]
) -> tuple[bytes, object]:
    """The body decompressed, and parsed. Raises InputError."""
    if coding:
        data = _decompress(data, coding, limit)
    if not data.strip():
        raise InputError("The body is empty: a JSON object is needed.")
    # Before parsing, as a body of 1 MiB can be 350,000 objects.
    most_images = max(max_items.values(), default=1)
    if sum(map(data.count, (b",", b"[", b"{"))) > MARKS_PER_IMAGE * most_images:
        raise InputError(
            f"The body has far more values than {most_images} images need.",
            field=next(iter(max_items), None),
        )
    parsed = _parse_json(data)
    if isinstance(parsed, dict):
        for name, most in max_items.items():
            items = parsed.get(name)
            if isinstance(items, list) and len(items) > most:
                raise InputError(f"A job takes 1 to {most} images, not {len(items)}.", field=name)
    return data, parsed


def _parse_json(data: bytes) -> object:
    """Any JSON. Raises InputError."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise InputError(
            f"The body is not valid JSON: {error.msg} at position {error.pos}."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError("The body is not valid JSON: it is not UTF-8.") from error
    except RecursionError as error:
        raise InputError("The body is not valid JSON: it is nested too deeply.") from error
    except ValueError as error:  # Python reads no integers of thousands of digits
        raise InputError("The body is not valid JSON: a number is too long.") from error


def _decompress(data: bytes, coding: str, limit: int) -> bytes:
    """The decompressed body, of which no more than `limit` bytes are made. Raises InputError."""
    # RFC 9110, 8.4.1: "deflate" is zlib's format; some clients send the bare stream.
    formats = (31,) if coding == "gzip" else (zlib.MAX_WBITS, -zlib.MAX_WBITS)
    for window_bits in formats:
        stream = zlib.decompressobj(window_bits)
        try:
            content = stream.decompress(data, limit + 1)
        except zlib.error:
            continue
        if len(content) > limit:
            raise OversizedBodyError(f"The body has more than {limit:,} bytes, decompressed.")
        # Data behind the end would be a second member: they are not taken, as thousands of empty
        # ones fit a small body.
        if stream.eof and not stream.unused_data:
            return content
        break
    raise InputError(f"The body is not whole, valid {coding} data.")


def _names_in(parsed: object, lists: Mapping[str, int]) -> set[str]:
    """The names of fields that have values in the body, and in the objects of its lists."""
    if not isinstance(parsed, dict):
        return set()
    inner = [
        item for name in lists if isinstance(items := parsed.get(name), list) for item in items
    ]
    objects = [parsed, *parsed.values(), *inner]
    return {
        name
        for one in objects
        if isinstance(one, dict)
        for name, value in one.items()
        if value is not None
    }
