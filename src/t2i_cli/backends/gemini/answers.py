"""Reads the answers of generateContent: an image, or why there is none.

Sources: `GenerateContentResponse`, `Candidate.FinishReason` and `BlockedReason` of google-genai
2.34 and google-cloud-aiplatform 2.7.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from t2i_cli.errors import ContentFilteredError, RemoteError, T2IError
from t2i_cli.files.state_files import is_count, is_unicode_text
from t2i_cli.net import error_body

_REFUSALS = frozenset(
    {
        *("SAFETY", "IMAGE_SAFETY", "PROHIBITED_CONTENT", "IMAGE_PROHIBITED_CONTENT"),
        *("BLOCKLIST", "SPII", "RECITATION", "IMAGE_RECITATION", "MODEL_ARMOR"),
    }
)
"""Reasons to stop that are a refusal of what is asked for, or of what was made."""
_UNSPECIFIED = {"", "FINISH_REASON_UNSPECIFIED", "STOP"}
_TOKENS = {
    "promptTokenCount": "prompt",
    "candidatesTokenCount": "candidates",
    "thoughtsTokenCount": "thoughts",
    "totalTokenCount": "total",
}
"""Names of the counts of `usageMetadata` in records."""
_CHANGE_HINT = "Change the prompt."


@dataclass(frozen=True, kw_only=True)
class ImageAnswer:
    """The first image of an answer, in base64, and the number of further ones.

    `tokens` are Google's counts of them.
    """

    base64: str = field(repr=False)
    extra: int
    model_version: str | None
    response_id: str | None
    tokens: Mapping[str, int] | None


def parse_image_answer(body: object) -> ImageAnswer:
    """The image of an answer with status 200. Raises T2IError for one without."""
    if not isinstance(body, dict):
        raise _nonsense_error()
    candidates = _objects(body.get("candidates"))
    parts = [part for candidate in candidates for part in _parts(candidate)]
    images = list(_images(parts))
    if not images:
        raise _missing_image_error(body, candidates, parts)
    return ImageAnswer(
        base64=images[0],
        extra=len(images) - 1,
        model_version=_text(body.get("modelVersion")),
        response_id=_text(body.get("responseId")),
        tokens=_token_counts(body.get("usageMetadata")),
    )


def _images(parts: list[dict[str, object]]) -> Iterator[str]:
    """The base64 of each image; what a model drew while it thought is none of its answer."""
    for part in parts:
        inline = part.get("inlineData")
        if part.get("thought") is True or not isinstance(inline, dict):
            continue
        data, kind = inline.get("data"), inline.get("mimeType")
        if isinstance(data, str) and data and str(kind or "image/").startswith("image/"):
            yield data


def _missing_image_error(
    body: Mapping[str, object],
    candidates: list[dict[str, object]],
    parts: list[dict[str, object]],
) -> T2IError:
    feedback = body.get("promptFeedback")
    if isinstance(feedback, dict) and (reason := feedback.get("blockReason")):
        told = _sentence(feedback.get("blockReasonMessage"))
        return ContentFilteredError(
            f"Google refuses the prompt ({_shown(reason)}).{told}", hint=_CHANGE_HINT
        )
    reasons = [str(candidate.get("finishReason") or "") for candidate in candidates]
    said = _sentence(next((one.get("finishMessage") for one in candidates), None))
    words = _spoken(parts)
    if refusal := next((reason for reason in reasons if reason in _REFUSALS), None):
        return ContentFilteredError(
            f"Google withheld the image ({refusal}).{said or words}", hint=_CHANGE_HINT
        )
    if "MAX_TOKENS" in reasons:
        return RemoteError(
            "The model used up its tokens before it had made an image.",
            hint="A shorter prompt, or a smaller size, leaves it more.",
        )
    ended = next((reason for reason in reasons if reason not in _UNSPECIFIED), None)
    if ended:
        return RemoteError(
            f"The model made no image ({_shown(ended)}).{said or words}",
            hint="Try again, or change the prompt.",
        )
    if words:
        return RemoteError(
            f"The model answered in words, without an image.{words}",
            hint="Say in the prompt that it is to draw, or change what it shall show.",
        )
    return RemoteError("Google's answer holds no image.", hint="Try again.")


def _spoken(parts: list[dict[str, object]]) -> str:
    """What the model says, as the rest of a message; without its thoughts."""
    texts = (part.get("text") for part in parts if part.get("thought") is not True)
    return _sentence(" ".join(text for text in texts if isinstance(text, str)))


def _sentence(text: object) -> str:
    """Google's text as a sentence after another one; empty for none."""
    said = error_body.sanitise(text) if isinstance(text, str) else ""
    return f" It says: {error_body.with_full_stop(said)}" if said else ""


def _shown(reason: object) -> str:
    return error_body.sanitise(str(reason))


def _objects(value: object) -> list[dict[str, object]]:
    """The objects of a list; empty for anything else."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _parts(candidate: Mapping[str, object]) -> list[dict[str, object]]:
    content = candidate.get("content")
    return _objects(content.get("parts")) if isinstance(content, dict) else []


def _text(value: object) -> str | None:
    return value if is_unicode_text(value, 256) else None


def _token_counts(usage: object) -> dict[str, int] | None:
    if not isinstance(usage, dict):
        return None
    return {
        ours: usage[name] for name, ours in _TOKENS.items() if is_count(usage.get(name))
    } or None


def _nonsense_error() -> RemoteError:
    return RemoteError(
        "The answer makes no sense: it is no object.",
        hint="Is --api-endpoint an address of Vertex AI?",
    )
