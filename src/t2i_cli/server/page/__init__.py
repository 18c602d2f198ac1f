"""The web page at `/`, and its static files."""

import hashlib
import json
from functools import cache
from html import escape
from importlib import resources
from typing import NamedTuple

from fastapi import APIRouter, HTTPException, Request, Response

from t2i_cli.request_field import RequestField
from t2i_cli.request_fields import DISPLAY_FIELDS, FIELDS, SIZE

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob: data:",  # images, and previews
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

_INPUTS_PLACEHOLDER = "<!-- inputs of the request fields -->"
_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}


class _File(NamedTuple):
    content: bytes
    headers: dict[str, str]


@cache
def _files() -> dict[str, _File]:
    """The page's files by name; requests are looked up here only, never in the file system."""
    files = {
        entry.name: entry.read_bytes()
        for entry in resources.files(__package__).iterdir()
        if entry.name.rpartition(".")[2] in _TYPES
    }
    files["index.html"] = _render_fields(files["index.html"].decode()).encode()
    return {name: _file(name, content) for name, content in files.items()}


def _render_fields(page: str) -> str:
    """The page with inputs for the request fields, and the labels of those shown of an image."""
    inputs = [_input(known) for known in FIELDS.values() if known.on_page]
    # The size shown is that of the image itself.
    shown = (
        "seed",
        *(n for n in DISPLAY_FIELDS if n != "seed" and FIELDS[n].dialects.get("t2i") != SIZE),
    )
    names = escape(json.dumps({name: FIELDS[name].label for name in shown}))
    page = page.replace(_INPUTS_PLACEHOLDER, "\n              ".join(inputs))
    return page.replace('data-names="{}"', f'data-names="{names}"')


def _input(known: RequestField) -> str:
    """A field's label and input as HTML; page.js adds the model's limits and choices."""
    attributes: dict[str, object] = {"name": known.name, "placeholder": known.placeholder}
    attributes["data-needs"] = known.needs
    if known.kind is str and known.needs and not known.prose:
        unset = known.default if known.default in known.choices else "Model’s own"
        tag, closing = "select", f'<option value="">{unset}</option></select>'
    else:
        tag, closing = "input", ""
    if known.kind in (int, float):
        integer = known.kind is int
        attributes |= {"type": "number", "inputmode": "numeric" if integer else "decimal"}
        attributes |= {"min": known.low, "max": known.high, "step": None if integer else "any"}
    if known.model_default:
        attributes["data-default"] = ""
    if known.expanded:
        attributes["data-expanded"] = ""
    html = " ".join(f'{name}="{escape(str(v))}"' for name, v in attributes.items() if v is not None)
    css_class = ' class="wide"' if known.prose else ""
    return f"<label{css_class}>{escape(known.label)} <{tag} {html}>{closing}</label>"


def _file(name: str, content: bytes) -> _File:
    headers = {
        "Content-Type": f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8",
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Cross-Origin-Resource-Policy": "same-origin",
        # Cached, but revalidated each time: another version of t2i has other files.
        "Cache-Control": "no-cache",
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    }
    return _File(content, headers)


def page_router() -> APIRouter:
    """GET `/` and `/static/NAME`; they contain no secrets and need no API key."""
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    def page(request: Request) -> Response:
        return _file_response("index.html", request)

    @routes.api_route("/static/{name}", methods=["GET", "HEAD"])
    def static(name: str, request: Request) -> Response:
        return _file_response(name, request)

    return routes


def _file_response(name: str, request: Request) -> Response:
    file = _files().get(name)
    if file is None:
        raise HTTPException(404)
    if request.headers.get("If-None-Match") == file.headers["ETag"]:
        return Response(status_code=304, headers=file.headers)
    return Response(file.content, headers=file.headers)
