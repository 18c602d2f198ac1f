"""A deployment's configuration, stored in its endpoint's description.

The description is a field of Vertex AI's Endpoint: wherever t2i runs, it finds there what was
deployed, as the price while a deployment is under way, and for `t2i remote resume`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t2i_cli.files.state_files import is_count, is_unicode_text, parse_json
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.resource_bodies import ApiVersion

_PREFIX = "Deployed by t2i as: "
_SCHEMA = 1
_INPUT_FIELDS = (
    "model",
    "displayName",
    "dedicatedResources",
    "serviceAccount",
    "enableContainerLogging",
    "disableContainerLogging",
    "enableAccessLogging",
    "fasterDeploymentConfig",
)
"""Fields of a DeployedModel that a request sets, and that are the same for every deployment."""
_BETA_FIELDS = {"scaleToZeroSpec", "flexStart", "initialReplicaCount", "minGpuDriverVersion"}
"""Fields of DedicatedResources and MachineSpec that only the v1beta1 API has."""


@dataclass(frozen=True, kw_only=True)
class StoredDeployment:
    """A DeployedModel as a request has it, without its id, and the API version that takes it."""

    deployed_model: Mapping[str, Any]
    version: ApiVersion
    scheduler_account: str | None = None

    def text(self) -> str:
        """As the endpoint's description."""
        record = {
            "schema": _SCHEMA,
            "version": self.version,
            "deployedModel": dict(self.deployed_model),
            "schedulerAccount": self.scheduler_account,
        }
        return _PREFIX + json.dumps(record)


def stored_deployment(endpoint: Mapping[str, Any]) -> StoredDeployment | None:
    """The configuration in an endpoint's description, None if there is no sound one."""
    description = endpoint.get("description", "")
    if not description.startswith(_PREFIX):
        return None
    try:
        record = parse_json(description.removeprefix(_PREFIX).encode())
    except ValueError:
        return None
    # Anybody who may change the endpoint can write it.
    if not isinstance(record, dict) or record.get("schema") != _SCHEMA:
        return None
    model, account = record.get("deployedModel"), record.get("schedulerAccount")
    sound = (
        record.get("version") in {"v1", "v1beta1"}
        and isinstance(model, dict)
        and is_unicode_text(model.get("model"))
        and _are_resources(model.get("dedicatedResources"))
        and ("serviceAccount" not in model or is_unicode_text(model["serviceAccount"]))
        and (account is None or is_unicode_text(account))
    )
    if not sound or not isinstance(model, dict):
        return None
    kept = {name: value for name, value in model.items() if name in _INPUT_FIELDS}
    return StoredDeployment(
        deployed_model=kept,
        version="v1beta1" if record["version"] == "v1beta1" else "v1",
        scheduler_account=account,
    )


def stored_from_api(deployed: Mapping[str, Any]) -> StoredDeployment:
    """The configuration of a DeployedModel that the v1beta1 API shows."""
    kept = {name: value for name, value in deployed.items() if name in _INPUT_FIELDS}
    resources = kept.get("dedicatedResources", {})
    fields = {*resources, *resources.get("machineSpec", {})}
    beta = not _BETA_FIELDS.isdisjoint(fields)
    if "scaleToZeroSpec" in kept.get("dedicatedResources", {}):
        # The API leaves 0 out.
        kept["dedicatedResources"] = {"minReplicaCount": 0} | dict(kept["dedicatedResources"])
    if beta:
        # Its logs are off by default there.
        kept["enableContainerLogging"] = not kept.get("disableContainerLogging", False)
        kept.pop("disableContainerLogging", None)
    else:
        kept.pop("enableContainerLogging", None)  # the v1 API lacks it: its logs are on
    return StoredDeployment(deployed_model=kept, version="v1beta1" if beta else "v1")


def store_deployment(
    client: GoogleClient,
    endpoint: str,
    stored: StoredDeployment,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Write it into the endpoint's description, and its `labels` with it. Raises T2IError."""
    body: dict[str, object] = {"description": stored.text()}
    if labels is not None:
        body["labels"] = dict(labels)
    client.call(
        "PATCH", "aiplatform", endpoint, json=body, params={"updateMask": ",".join(sorted(body))}
    )


def _are_resources(value: object) -> bool:
    """Whether the fields of DedicatedResources that are read here are sound."""
    if not isinstance(value, dict) or not isinstance(machine := value.get("machineSpec"), dict):
        return False
    scaling = value.get("scaleToZeroSpec", {})
    idle = scaling.get("idleScaledownPeriod", "0s") if isinstance(scaling, dict) else None
    counts = [value.get("minReplicaCount", 1), value.get("maxReplicaCount", 1)]
    return (
        is_unicode_text(machine.get("machineType"))
        and is_unicode_text(idle)
        and is_unicode_text(machine.get("acceleratorType", "none"))
        and all(one == 0 or is_count(one) for one in [*counts, machine.get("acceleratorCount", 1)])
    )
