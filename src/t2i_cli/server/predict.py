"""The article's dialect: POST /predict with a prompt answers with the image itself."""

from typing import Any

from fastapi import APIRouter, Request, Response

from t2i_cli import naming
from t2i_cli.naming import Format
from t2i_cli.server import wire
from t2i_cli.server.engine import Engine
from t2i_cli.server.fields import Asked
from t2i_cli.server.options import ServerOptions

_BINARY = {"schema": {"type": "string", "format": "binary"}}
IMAGE: dict[str, Any] = {
    "description": "The image.",
    "content": {f"image/{format}": _BINARY for format in naming.EXTENSIONS},
}
"""What OpenAPI says of an answer that is an image file."""


class PredictBody(Asked):
    """One image, and how it is encoded; `lenient` leaves out what the model cannot honour."""

    format: Format = "jpeg"
    lenient: bool = False


def router(engine: Engine, options: ServerOptions) -> APIRouter:
    """POST /predict."""
    api = APIRouter(tags=["predict"])

    @api.post("/predict", response_class=Response, responses={200: IMAGE})
    async def predict(body: PredictBody, request: Request) -> Response:
        """Make one image; the answer is the image file, a JPEG unless `format` says otherwise."""
        requests = await engine.settle([body.request()], lenient=body.lenient)
        [image] = await wire.images(request, engine.submit(requests))
        data = await wire.encode(image, body.format)
        return Response(data, media_type=f"image/{body.format}")

    return api
