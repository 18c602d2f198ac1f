"""Dialects of OpenAI's images API: which further fields each server accepts, and their names.

Sources: OpenAI's API reference (images); the API pages of SGLang Diffusion, vLLM-Omni and LocalAI.
"""

from collections.abc import Sequence

from t2i_cli.errors import InputError
from t2i_cli.model_spec import GuidanceArgument
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_fields import DIALECTS, FIELDS, SIZE, Dialect


def detect_dialect(owners: Sequence[object]) -> Dialect:
    """The dialect of a server by `owned_by` in its model list; OpenAI's for unknown owners."""
    known = (d for d in DIALECTS.values() if d.owner and d.owner in owners)
    return next(known, DIALECTS["openai"])


def build_image_request(
    request: ResolvedRequest,
    model: str,
    dialect: Dialect,
    guidance: GuidanceArgument | None,
) -> dict[str, object]:
    """The JSON request body: the set fields that the dialect accepts. Raises InputError."""
    body: dict[str, object] = {"model": model, "prompt": request.prompt, "n": 1}
    if dialect.name == "openai" and not model.startswith("dall-e"):
        # gpt-image and its successors always respond in base64, and reject `response_format`.
        body["output_format"] = "png"
    else:
        body["response_format"] = "b64_json"
    if (request.width is None) != (request.height is None):
        raise InputError(
            "The server takes width and height together.", hint="--size 512x768", field="size"
        )
    if request.width is not None:
        body[SIZE] = f"{request.width}x{request.height}"
    for field, known in FIELDS.items():
        name = known.dialects.get(dialect.name)
        if known.expanded or name in {None, SIZE} or (value := getattr(request, field)) is None:
            continue
        if dialect.true_cfg and guidance is not None and known.true_cfg == guidance:
            name = guidance
        body[str(name)] = known.json_value(value)
    return body
