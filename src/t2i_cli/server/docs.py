"""/docs: the OpenAPI document as HTML, rendered here so that no other host is contacted."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

_STYLE = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


def docs_router() -> APIRouter:
    """GET /docs."""
    api = APIRouter(include_in_schema=False)

    @api.get("/docs")
    async def docs(request: Request) -> HTMLResponse:
        """Every route, what it takes and what it answers."""
        text = _page(request.app.openapi())
        return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})

    return api


def _page(document: Mapping[str, Any]) -> str:
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>t2i: the API</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
        f"<h1>t2i {escape(document['info']['version'])}: the API</h1>"
        "<p><a href='/openapi.json'>openapi.json</a> is the same for programs.</p>"
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2>{method.upper()} {escape(path)}</h2>")
            parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
            if body := operation.get("requestBody"):
                schema = body["content"]["application/json"]["schema"]
                parts.append(f"<details><summary>The body</summary>{_json(schema)}</details>")
            statuses = ", ".join(operation["responses"])
            parts.append(f"<p>Answers: {escape(statuses)}</p>")
    schemas = document.get("components", {}).get("schemas", {})
    parts += [
        f"<details><summary>{escape(name)}</summary>{_json(schema)}</details>"
        for name, schema in schemas.items()
    ]
    return "\n".join(parts)


def _json(value: object) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2))}</pre>"
