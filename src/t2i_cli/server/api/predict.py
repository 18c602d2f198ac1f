"""The predict dialect: POST /predict with a prompt returns the image file itself."""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from t2i_cli import image_formats
from t2i_cli.events import Notice
from t2i_cli.image_formats import ImageFormat
from t2i_cli.server import responses
from t2i_cli.server.engine import Engine
from t2i_cli.server.json_route import json_route
from t2i_cli.server.options import ServerOptions
from t2i_cli.server.schemas import ImageRequest

_BINARY = {"schema": {"type": "string", "format": "binary"}}
IMAGE_RESPONSE: dict[str, Any] = {
    "description": "The image.",
    "content": {f"image/{format}": _BINARY for format in image_formats.EXTENSIONS},
}
"""The OpenAPI object of a response that is an image file."""


NOTES_HEADER = "T2I-Notes"
LONGEST_NOTE = 300
"""Characters of a note in the header; proxies limit headers to a few KB."""


class PredictBody(ImageRequest):
    """One image, and how it is encoded; `lenient` leaves out what the model cannot honour."""

    format: ImageFormat = "jpeg"
    lenient: bool = False


def predict_router(engine: Engine, options: ServerOptions) -> APIRouter:
    """POST /predict."""
    api = APIRouter(tags=["predict"], route_class=json_route(options.max_body))

    @api.post("/predict", response_class=Response, responses={200: IMAGE_RESPONSE})
    async def predict(body: PredictBody, request: Request) -> Response:
        """Make one image; the answer is the image file, a JPEG unless `format` says otherwise."""
        notes: list[Notice] = []
        requests = await engine.resolve_requests(
            [body.request()], lenient=body.lenient, on_note=notes.append
        )
        job = engine.submit(requests, steps=False, notes=notes)
        [image] = await responses.wait_for_images(request, job)
        data = await responses.encode_image(image, body.format)
        headers = _notes_header(job.notes(image.index))
        return Response(data, headers=headers, media_type=f"image/{body.format}")

    return api


def _notes_header(notes: Sequence[str]) -> dict[str, str]:
    """The T2I-Notes header: the notes as a JSON list, in ASCII; none without notes."""
    shown = [n if len(n) <= LONGEST_NOTE else f"{n[:LONGEST_NOTE]}…" for n in notes]
    return {NOTES_HEADER: json.dumps(shown).replace("\x7f", "")} if notes else {}
