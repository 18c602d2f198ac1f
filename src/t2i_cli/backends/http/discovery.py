"""A server's models and dialect, as known before an image is requested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from t2i_cli.errors import InputError, ModelError, RemoteError, T2IError
from t2i_cli.files.state_files import is_text
from t2i_cli.known_names import suggest_name
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.models.described_spec import check_spec_values
from t2i_cli.request_fields import DIALECTS, MODEL_DEFAULTS, OPTIONAL_FIELDS, Dialect

_MAX_LISTED = 5
"""Maximum number of models that an error lists."""


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """What a server says of itself; `models` is `None` if it does not list them.

    `facts` is a t2i server's description of its model, empty for other servers. `unasked` is why
    the server could not be asked, where only a plan is wanted.
    """

    url: str
    dialect: Dialect
    models: Sequence[str] | None
    facts: Mapping[str, Any]
    unasked: T2IError | None = None

    def model_name(self, wanted: str | None) -> str:
        """The server's name of a model; raises InputError or ModelError."""
        if wanted is None and self.unasked:
            raise self.unasked
        if wanted is None:
            if self.models and len(self.models) == 1:
                return self.models[0]
            choices = f": {self._model_list()}" if self.models else ""
            raise InputError(
                f"The server at {self.url} does not say which model to use{choices}.",
                hint="-m names one.",
                field="model",
            )
        if self.models is None:
            return wanted
        spec = catalog.find_in_catalog(wanted) or catalog.find_spelled(wanted)
        names = {wanted} | ({spec.name, spec.repo} if spec else set())
        if found := next((model for model in self.models if model in names), None):
            return found
        if self.models and names & {self.facts.get("name"), self.facts.get("repo")}:
            return self.models[0]
        raise ModelError(
            f"The server at {self.url} does not have {wanted}; it has {self._model_list()}.",
            hint=f"{suggest_name(wanted, self.models)}-m names one, or leave it out.",
        )

    def model_spec(self, name: str) -> ModelSpec:
        """Describe a model, without defaults of fields that the dialect does not accept."""
        known = catalog.find_in_catalog(
            str(self.facts.get("repo") or name)
        ) or catalog.find_in_catalog(name)
        spec = known or ModelSpec(name=name, multiple=1)
        if self.facts:
            spec = _with_facts(spec, self.facts)
        unsupported: dict[str, Any] = dict.fromkeys(set(MODEL_DEFAULTS) - self.dialect.takes)
        return replace(
            spec, revision=self.facts.get("revision"), refuses=self._refuses(), **unsupported
        )

    def _refuses(self) -> tuple[tuple[str, str], ...]:
        prefix = f"The server at {self.url} ({self.dialect.name} dialect) takes no"
        refused = set(self.facts.get("refuses") or ())
        return tuple(
            (field, f"{prefix} {field.replace('_', ' ')}.")
            for field in OPTIONAL_FIELDS
            if field in refused or field not in self.dialect.takes
        )

    def _model_list(self) -> str:
        models = list(self.models or ["no model"])
        more = f" and {len(models) - _MAX_LISTED} more" if len(models) > _MAX_LISTED else ""
        return ", ".join(models[:_MAX_LISTED]) + more


def unasked_server(url: str, dialect: str | None, why: T2IError) -> ServerInfo:
    """What is known of a server that could not be asked.

    It may have any dialect: the one with the most fields stands for it.
    """
    return ServerInfo(
        url=url, dialect=DIALECTS[dialect or "t2i"], models=None, facts={}, unasked=why
    )


def check_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a t2i server; raises RemoteError for such as no model has."""
    refuses = facts.get("refuses")
    try:
        check_spec_values(facts)
        if refuses is not None and not (isinstance(refuses, list) and all(map(is_text, refuses))):
            raise ValueError("refuses is none")
    except ValueError as error:
        raise RemoteError(
            f"What the server says of its model makes no sense: its {error}.",
            hint="--dialect openai asks it for no such thing.",
        ) from error
    return facts


def _with_facts(spec: ModelSpec, facts: Mapping[str, Any]) -> ModelSpec:
    """Update a model's description with the facts of a t2i server."""
    names = ("name", "repo", *MODEL_DEFAULTS, "multiple")
    values = {field: facts[field] for field in names if field in facts}
    return replace(
        spec,
        **values,
        negative_prompt=bool(facts.get("negative_prompt", spec.negative_prompt)),
        guidance_argument=spec.guidance_argument if facts.get("guidance", True) else None,
    )
