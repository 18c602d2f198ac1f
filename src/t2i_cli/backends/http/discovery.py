"""What can be learnt of a server before it is asked for an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from t2i_cli.errors import InputError, ModelError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.request_fields import MODEL_DEFAULTS, OPTIONAL, Dialect

_SHOWN = 5
"""Models that an error names."""


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """A server by its answers: `models` None where it does not list them.

    `facts` is what a t2i server tells of its model.
    """

    url: str
    dialect: Dialect
    models: Sequence[str] | None
    facts: Mapping[str, Any]

    def model_name(self, wanted: str | None) -> str:
        """The server's name for a model; raises InputError or ModelError."""
        if wanted is None:
            if self.models and len(self.models) == 1:
                return self.models[0]
            how = f": {self._listed()}" if self.models else ""
            raise InputError(
                f"The server at {self.url} does not say which model to use{how}.",
                hint="-m names one.",
                field="model",
            )
        if self.models is None:
            return wanted
        spec = catalog.find_in_catalog(wanted)
        same = {wanted} | ({spec.name, spec.repo} if spec else set())
        if found := next((model for model in self.models if model in same), None):
            return found
        if self.models and same & {self.facts.get("name"), self.facts.get("repo")}:
            return self.models[0]
        raise ModelError(
            f"The server at {self.url} does not have {wanted}; it has {self._listed()}.",
            hint="-m names one, or leave it out.",
        )

    def model_spec(self, name: str) -> ModelSpec:
        """What is known of a model, as far as the server lets it be set."""
        known = catalog.find_in_catalog(
            str(self.facts.get("repo") or name)
        ) or catalog.find_in_catalog(name)
        spec = known or ModelSpec(name=name, multiple=1)
        if self.facts:
            spec = _told(spec, self.facts)
        left: dict[str, Any] = dict.fromkeys(set(MODEL_DEFAULTS) - self.dialect.takes)
        return replace(spec, revision=self.facts.get("revision"), refuses=self._refuses(), **left)

    def _refuses(self) -> tuple[tuple[str, str], ...]:
        where = f"The server at {self.url} ({self.dialect.name} dialect) takes no"
        told = set(self.facts.get("refuses") or ())
        return tuple(
            (field, f"{where} {field.replace('_', ' ')}.")
            for field in OPTIONAL
            if field in told or field not in self.dialect.takes
        )

    def _listed(self) -> str:
        models = list(self.models or ["no model"])
        more = f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else ""
        return ", ".join(models[:_SHOWN]) + more


def _told(spec: ModelSpec, facts: Mapping[str, Any]) -> ModelSpec:
    """The model's facts as a t2i server tells them."""
    same = ("name", "repo", *MODEL_DEFAULTS, "multiple")
    told = {field: facts[field] for field in same if field in facts}
    return replace(
        spec,
        **told,
        negative_prompt=bool(facts.get("negative_prompt", spec.negative_prompt)),
        guidance_argument=spec.guidance_argument if facts.get("guidance", True) else None,
    )
