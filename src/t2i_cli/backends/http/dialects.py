"""What the servers of OpenAI's images API take beside it, and how a request is put to each.

Sources: OpenAI's API reference (images); the API pages of SGLang Diffusion, vLLM-Omni and LocalAI.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from t2i_cli.errors import InputError
from t2i_cli.model_spec import GuidanceArgument
from t2i_cli.request import ResolvedRequest

SETTINGS = (
    "negative_prompt",
    "seed",
    "steps",
    "guidance_scale",
    "width",
    "height",
    "scheduler",
    "revision",
)
"""A request's fields that a server may or may not take; all take the prompt and the model."""

_SIZE = frozenset({"width", "height"})
_SHARED = _SIZE | {"negative_prompt", "seed", "steps", "guidance_scale"}


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One kind of server. `owner` is what its model list says; `steps` is its name for steps."""

    name: str
    takes: frozenset[str]
    owner: str | None = None
    steps: str = "num_inference_steps"
    true_cfg: bool = False


DIALECTS = {  # setting_table.DIALECTS has the same names
    dialect.name: dialect
    for dialect in (
        Dialect(name="t2i", owner="t2i", takes=_SHARED | {"scheduler"}),
        Dialect(name="openai", takes=_SIZE),
        Dialect(name="sglang", owner="sglang", takes=_SHARED, true_cfg=True),
        Dialect(name="vllm", owner="vllm", takes=_SHARED, true_cfg=True),
        Dialect(name="localai", takes=_SIZE | {"steps"}, steps="step"),
    )
}


def detect_dialect(owners: Sequence[object]) -> Dialect:
    """The dialect of a server by the owners that its model list names; OpenAI's for any other."""
    known = (d for d in DIALECTS.values() if d.owner and d.owner in owners)
    return next(known, DIALECTS["openai"])


def build_image_request(
    request: ResolvedRequest,
    model: str,
    dialect: Dialect,
    guidance: GuidanceArgument | None,
) -> dict[str, object]:
    """The JSON to post; only what the request sets and the dialect takes. Raises InputError."""
    sent: dict[str, object] = {"model": model, "prompt": request.prompt, "n": 1}
    if dialect.name == "openai" and not model.startswith("dall-e"):
        # gpt-image and its successors always answer in base64, and refuse to be asked for it.
        sent["output_format"] = "png"
    else:
        sent["response_format"] = "b64_json"
    if (request.width is None) != (request.height is None):
        raise InputError(
            "The server takes width and height together.", hint="--size 512x768", field="size"
        )
    if request.width is not None:
        sent["size"] = f"{request.width}x{request.height}"
    scale = "true_cfg_scale" if dialect.true_cfg and guidance == "true_cfg_scale" else None
    named = {
        "negative_prompt": "negative_prompt",
        "seed": "seed",
        "steps": dialect.steps,
        "guidance_scale": scale or "guidance_scale",
        "scheduler": "scheduler",
    }
    for field, name in named.items():
        if field in dialect.takes and (value := getattr(request, field)) is not None:
            sent[name] = value
    return sent
