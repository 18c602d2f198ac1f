"""RayCluster (ray.io/v1) as KubeRay's Go types declare it, and what else its operator refuses."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

_KUBERNETES = json.loads(Path(__file__).with_name("kubernetes_types.json").read_text())
"""Kubernetes' own types: those of 1.37, closed to unknown fields."""


def _kubernetes(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/io.k8s.api.{name}"}


def _object(required: str = "", **properties: object) -> dict[str, Any]:
    """An object with these fields only, of which those named in `required` must be there."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": required.split(),
    }


_STRING, _BOOLEAN = {"type": "string"}, {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_STRINGS = {"type": "object", "additionalProperties": _STRING}
_CREDENTIAL = _object(valueFrom=_kubernetes("core.v1.EnvVarSource"), value=_STRING)
_AUTOSCALER = _object(
    resources=_kubernetes("core.v1.ResourceRequirements"),
    image=_STRING,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    env={"type": "array", "items": _kubernetes("core.v1.EnvVar")},
    envFrom={"type": "array", "items": _kubernetes("core.v1.EnvFromSource")},
    volumeMounts={"type": "array", "items": _kubernetes("core.v1.VolumeMount")},
    securityContext=_kubernetes("core.v1.SecurityContext"),
    idleTimeoutSeconds=_COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    version={"enum": ["v1", "v2"]},
)
_HEAD = _object(
    "template rayStartParams",
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
    headService=_kubernetes("core.v1.Service"),
    enableIngress=_BOOLEAN,
    rayStartParams=_STRINGS,
    template=_kubernetes("core.v1.PodTemplateSpec"),
    resources=_STRINGS,
    labels=_STRINGS,
)
# Newer operators take groups without rayStartParams, those before them do not.
_WORKERS = _object(
    "groupName minReplicas maxReplicas template rayStartParams",
    groupName=_STRING,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    numOfHosts=_COUNT,
    idleTimeoutSeconds=_COUNT,
    suspend=_BOOLEAN,
    rayStartParams=_STRINGS,
    template=_kubernetes("core.v1.PodTemplateSpec"),
    scaleStrategy=_object(workersToDelete={"type": "array", "items": _STRING}),
    resources=_STRINGS,
    labels=_STRINGS,
)
_SPEC = _object(
    "headGroupSpec",
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
    rayVersion=_STRING,
    enableInTreeAutoscaling=_BOOLEAN,
    autoscalerOptions=_AUTOSCALER,
    headServiceAnnotations=_STRINGS,
    suspend=_BOOLEAN,
    managedBy={"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
    gcsFaultToleranceOptions=_object(
        "redisAddress",
        redisAddress=_STRING,
        externalStorageNamespace=_STRING,
        redisUsername=_CREDENTIAL,
        redisPassword=_CREDENTIAL,
    ),
)
_RAY_CLUSTER = _object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata={"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
    spec=_SPEC,
)
_KINDS = {
    ("ray.io/v1", "RayCluster"): _RAY_CLUSTER,
    ("batch/v1", "Job"): _kubernetes("batch.v1.Job"),
    ("v1", "PersistentVolumeClaim"): _kubernetes("core.v1.PersistentVolumeClaim"),
    ("v1", "Secret"): _kubernetes("core.v1.Secret"),
    ("networking.k8s.io/v1", "NetworkPolicy"): _kubernetes("networking.v1.NetworkPolicy"),
}


def resource_problems(resource: Mapping[str, Any]) -> list[str]:
    """What an API server with KubeRay would refuse of a resource, by its path; empty if nothing."""
    kind = (resource.get("apiVersion", ""), resource.get("kind", ""))
    if kind not in _KINDS:
        return [f"kind: {' '.join(kind)} is not known"]
    validator = Draft202012Validator(_KUBERNETES | _KINDS[kind])
    found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(resource)]
    if not found and kind[1] == "RayCluster":
        found = _group_problems(resource["spec"].get("workerGroupSpecs", []))
    return found


def _group_problems(groups: list[Mapping[str, Any]]) -> list[str]:
    found = []
    names = [group["groupName"] for group in groups]
    found += [f"groupName: {name} twice" for name in sorted(set(names)) if names.count(name) > 1]
    for group in groups:
        least, most = group["minReplicas"], group["maxReplicas"]
        if not least <= group.get("replicas", least) <= most:
            found.append(f"{group['groupName']}: replicas are not within {least} and {most}")
    return found
