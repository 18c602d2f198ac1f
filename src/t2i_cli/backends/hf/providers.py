"""Which providers make images, which one makes those of a model, and what fields it honours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from t2i_cli.backends.hf.options import AUTO
from t2i_cli.errors import InputError, ModelError
from t2i_cli.hub.inference_mapping import InferenceProvider, inference_providers
from t2i_cli.known_names import name_choices
from t2i_cli.model_spec import ModelSpec
from t2i_cli.request_fields import FIELDS, OPTIONAL_FIELDS, SIZE
from t2i_cli.settings.schema import join_choices

TASK = "text-to-image"

ARGUMENTS = {
    field: field if name == SIZE else name
    for field, known in FIELDS.items()
    if (name := known.dialects.get("sglang"))
}
"""The argument of `InferenceClient.text_to_image` for each field that it has one for.

They are diffusers' names, as that dialect has them; a scheduler is a class's name there.
"""
_SIZE = frozenset({"width", "height"})
_SETTINGS = frozenset(ARGUMENTS) - _SIZE
HONOURED: Mapping[str, frozenset[str]] = {
    # These hand on every field that huggingface_hub gives them; the model there may lack one.
    "fal-ai": _SIZE | _SETTINGS,
    "hf-inference": _SIZE | _SETTINGS,
    "replicate": _SIZE | _SETTINGS,
    "together": _SIZE | _SETTINGS,
    # docs.nscale.com, "Create image": model, prompt, size, n. huggingface_hub drops the steps.
    "nscale": _SIZE,
    # wavespeed.ai/docs: a size is text, as 1024*1024; huggingface_hub sends width and height.
    "wavespeed": _SETTINGS,
    # docs.z.ai, "Generate image": model, prompt, quality, size, user_id.
    "zai-org": _SIZE,
}
"""The request fields that each provider honours beside prompt and `--set`, as of August 2026.

A provider that is not listed is newer than this table, and is sent the prompt only.
"""
_WAVESPEED_SIZE = "wavespeed takes no {}: a size is text there, as --set 'size=1024*1024'."


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model on the Hub and its provider; `alternatives` are the other providers that serve it.

    Where the Hub could not be asked, `provider` may be AUTO, and `unknown` says why.
    """

    repo: str
    provider: str
    model_id: str | None
    alternatives: tuple[str, ...] = ()
    warning: str | None = None
    unknown: str | None = None

    @property
    def honoured(self) -> frozenset[str]:
        """The request fields that are sent."""
        if self.provider == AUTO:
            return frozenset().union(*HONOURED.values(), {"extras"})
        return HONOURED.get(self.provider, frozenset()) | {"extras"}

    def refusals(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a field that is not sent, and a sentence that says so."""
        return tuple(
            (field, self._refusal(field)) for field in OPTIONAL_FIELDS if field not in self.honoured
        )

    def _refusal(self, field: str) -> str:
        if self.provider == "wavespeed" and field in _SIZE:
            return _WAVESPEED_SIZE.format(field)
        return f"{self.provider} takes no {field.replace('_', ' ')}."


def image_providers() -> tuple[str, ...]:
    """The providers that the installed huggingface_hub can have images made by."""
    # Its documentation lists them, but it exports no list.
    from huggingface_hub.inference._providers import PROVIDERS

    return tuple(name for name, tasks in PROVIDERS.items() if TASK in tasks)


def check_provider(name: str) -> None:
    """Raise InputError for a provider that makes no images."""
    if name != AUTO and name not in (known := image_providers()):
        raise InputError(
            f"{name} is no provider of images; {name_choices(name, (AUTO, *known))}",
            field="provider",
        )


def find_served_model(spec: ModelSpec, provider: str) -> ServedModel:
    """The model at the provider, or at the first of the account's order for AUTO.

    Raises ModelError, naming those that serve it, and what the Hub's answer raises.
    """
    repo = spec.repo or spec.name
    known = image_providers()
    entries = [one for one in inference_providers(repo) if one.task == TASK and one.name in known]
    wanted = [one for one in entries if provider in (AUTO, one.name)]
    if not wanted:
        raise _not_served(repo, provider, [one.name for one in entries])
    found = next((one for one in wanted if one.status == "live"), wanted[0])
    return ServedModel(
        repo=repo,
        provider=found.name,
        model_id=found.model_id,
        alternatives=tuple(one.name for one in entries if one.name != found.name),
        warning=_warning(found, repo),
    )


def _not_served(repo: str, provider: str, others: Sequence[str]) -> ModelError:
    if not others:
        return ModelError(
            f"No provider makes images with {repo}.",
            hint="https://huggingface.co/models?pipeline_tag=text-to-image&inference_provider=all "
            "lists the models that one serves.",
        )
    return ModelError(
        f"{provider} does not serve {repo}; {join_choices(others)} does.",
        hint=f"--provider {others[0]}, or auto.",
    )


def _warning(found: InferenceProvider, repo: str) -> str | None:
    if found.status == "live":
        return None
    state = "failed its last check there" if found.status == "error" else "is on trial there"
    return f"{repo} at {found.name} may fail: it {state}, says the Hub."
