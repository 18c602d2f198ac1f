"""The inference providers that serve a model, as the Hub lists them."""

from dataclasses import dataclass

from huggingface_hub import constants, get_session, hf_raise_for_status
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._validators import validate_repo_id

from t2i_cli.errors import RemoteError
from t2i_cli.files.state_files import is_unicode_text, parse_json
from t2i_cli.hub import client
from t2i_cli.hub.errors import translate_hub_errors

_KEY = "inferenceProviderMapping"


@dataclass(frozen=True, kw_only=True)
class InferenceProvider:
    """One provider of a model: the model's id there, its task, and `live`, `staging` or `error`."""

    name: str
    model_id: str
    task: str
    status: str


def inference_providers(repo: str) -> tuple[InferenceProvider, ...]:
    """The providers of a model on the Hub, in the order of the token's account. Raises T2IError."""
    api = client.hub_api()
    with translate_hub_errors(repo):
        validate_repo_id(repo)
        response = get_session().get(
            f"{constants.ENDPOINT}/api/models/{repo}",
            params={"expand": _KEY},
            headers=build_hf_headers(token=api.token),
        )
        hf_raise_for_status(response)
    return parse_inference_providers(response.content)


def parse_inference_providers(body: bytes) -> tuple[InferenceProvider, ...]:
    """The providers in the Hub's answer on a model, none if it names none. Raises RemoteError."""
    try:
        answer = parse_json(body)
    except ValueError:
        answer = None
    found = answer.get(_KEY, {}) if isinstance(answer, dict) else None
    if isinstance(found, dict):
        found = [
            {**entry, "provider": name} if isinstance(entry, dict) else None
            for name, entry in found.items()
        ]
    entries = [_provider(entry) for entry in found] if isinstance(found, list) else [None]
    if not all(entries):
        raise RemoteError(
            f"What {constants.ENDPOINT} says of the model's providers makes no sense.",
            hint="HF_ENDPOINT names the address; a proxy or a login page may answer for it.",
        )
    return tuple(entry for entry in entries if entry)


def _provider(entry: object) -> InferenceProvider | None:
    """The provider in one entry, `None` for an entry that is none."""
    if not isinstance(entry, dict):
        return None
    name, model_id, task, status = (
        entry.get(key) for key in ("provider", "providerId", "task", "status")
    )
    if not (is_unicode_text(name, 100) and is_unicode_text(model_id, 1000)):
        return None
    if not (is_unicode_text(task, 100) and is_unicode_text(status, 100)):
        return None
    return InferenceProvider(name=name, model_id=model_id, task=task, status=status)
