"""The page for people at `/`, and the files it is made of."""

import hashlib
import json
from functools import cache
from html import escape
from importlib import resources
from typing import NamedTuple

from fastapi import APIRouter, HTTPException, Request, Response

from t2i_cli.request_fields import DISPLAY_FIELDS, FIELDS, SIZE, RequestField

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob: data:",  # finished pictures, and previews
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

_INPUTS = "<!-- the table of fields: an input for each -->"
_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}


class _File(NamedTuple):
    content: bytes
    headers: dict[str, str]


@cache
def _files() -> dict[str, _File]:
    """The page's files by name; what a request names is looked up here and nowhere else."""
    found = {
        entry.name: entry.read_bytes()
        for entry in resources.files(__package__).iterdir()
        if entry.name.rpartition(".")[2] in _TYPES
    }
    found["index.html"] = _with_fields(found["index.html"].decode()).encode()
    return {name: _file(name, content) for name, content in found.items()}


def _with_fields(page: str) -> str:
    """The page with the inputs of the fields, and with the names of those told of a picture."""
    inputs = [_input(known) for known in FIELDS.values() if known.on_page]
    # Its size is told from the picture itself.
    told = (
        "seed",
        *(n for n in DISPLAY_FIELDS if n != "seed" and FIELDS[n].dialects.get("t2i") != SIZE),
    )
    names = escape(json.dumps({name: FIELDS[name].label for name in told}))
    page = page.replace(_INPUTS, "\n              ".join(inputs))
    return page.replace('data-names="{}"', f'data-names="{names}"')


def _input(known: RequestField) -> str:
    """A field's label and input. Sizes and lists are completed from what the model takes."""
    marks: dict[str, object] = {"name": known.name, "placeholder": known.placeholder}
    marks["data-needs"] = known.needs
    if known.kind is str and known.needs and not known.prose:
        tag, end = "select", '<option value="">Model’s own</option></select>'
    else:
        tag, end = "input", ""
    if known.kind in (int, float):
        whole = known.kind is int
        marks |= {"type": "number", "inputmode": "numeric" if whole else "decimal"}
        marks |= {"min": known.low, "max": known.high, "step": None if whole else "any"}
    if known.model_default:
        marks["data-default"] = ""
    told = " ".join(f'{name}="{escape(str(v))}"' for name, v in marks.items() if v is not None)
    wide = ' class="wide"' if known.prose else ""
    return f"<label{wide}>{escape(known.label)} <{tag} {told}>{end}</label>"


def _file(name: str, content: bytes) -> _File:
    headers = {
        "Content-Type": f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8",
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Cross-Origin-Resource-Policy": "same-origin",
        # Kept, but asked about each time: another version of t2i has other files.
        "Cache-Control": "no-cache",
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    }
    return _File(content, headers)


def page_router() -> APIRouter:
    """Serves `/` and `/static/…`; they hold nothing secret and need no key."""
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    def page(request: Request) -> Response:
        return _answer("index.html", request)

    @routes.api_route("/static/{name}", methods=["GET", "HEAD"])
    def static(name: str, request: Request) -> Response:
        return _answer(name, request)

    return routes


def _answer(name: str, request: Request) -> Response:
    file = _files().get(name)
    if file is None:
        raise HTTPException(404)
    if request.headers.get("If-None-Match") == file.headers["ETag"]:
        return Response(status_code=304, headers=file.headers)
    return Response(file.content, headers=file.headers)
