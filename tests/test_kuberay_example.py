"""examples/kuberay.yaml is what KubeRay's operator and Kubernetes take."""

import copy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.kuberay import resource_problems

EXAMPLE = Path(__file__).parent.parent / "examples" / "kuberay.yaml"
RESOURCES: list[dict[str, Any]] = list(yaml.safe_load_all(EXAMPLE.read_text(encoding="utf-8")))
CLUSTER = next(one for one in RESOURCES if one["kind"] == "RayCluster")
JOB = next(one for one in RESOURCES if one["kind"] == "Job")


def group(cluster: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = cluster["spec"]["workerGroupSpecs"][0]
    return found


def container(cluster: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = group(cluster)["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda one: str(one["kind"]))
def test_every_resource_is_valid(resource: dict[str, Any]) -> None:
    assert resource_problems(resource) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["spec"].update(workerGroups=[]), "'workerGroups' was unexpected"),
        (lambda c: group(c).update(maxReplica=8), "'maxReplica' was unexpected"),
        (lambda c: c["spec"]["headGroupSpec"].pop("rayStartParams"), "'rayStartParams' is a requ"),
        (lambda c: group(c).pop("rayStartParams"), "'rayStartParams' is a required property"),
        (lambda c: group(c).pop("groupName"), "'groupName' is a required property"),
        (lambda c: group(c).pop("template"), "'template' is a required property"),
        (lambda c: group(c).update(maxReplicas="8"), "maxReplicas: '8' is not of type 'integer'"),
        (lambda c: group(c).update(minReplicas=-1), "-1 is less than the minimum"),
        (lambda c: group(c)["rayStartParams"].update({"num-gpus": 1}), "1 is not of type 'string'"),
        (lambda c: group(c).update(replicas=9), "gpu: replicas are not within 0 and 8"),
        (lambda c: group(c).update(minReplicas=9, replicas=9), "not within 9 and 8"),
        (lambda c: c["spec"]["workerGroupSpecs"].append(group(c)), "groupName: gpu twice"),
        (
            lambda c: c["spec"]["autoscalerOptions"].update(upscalingMode="Fast"),
            "'Fast' is not one of",
        ),
        (lambda c: container(c).update(volumeMount=[]), "'volumeMount' was unexpected"),
        (lambda c: container(c)["env"].append({"nme": "A"}), "'nme' was unexpected"),
        (lambda c: container(c).update(env={"A": "b"}), "is not of type 'array'"),
        (lambda c: c.update(apiVersion="ray.io/v1alpha1"), "is not known"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[dict[str, Any]], object], said: str) -> None:
    cluster = copy.deepcopy(CLUSTER)
    change(cluster)
    problems = resource_problems(cluster)
    assert any(said in problem for problem in problems), problems


def test_the_parts_of_the_example_fit_each_other() -> None:
    head = CLUSTER["spec"]["headGroupSpec"]["template"]["spec"]
    workers = group(CLUSTER)["template"]["spec"]
    batch = JOB["spec"]["template"]["spec"]
    pods = (head, workers, batch)
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    assert CLUSTER["spec"]["rayVersion"] in head["containers"][0]["image"]
    # All know Ray's token and lie behind the policy; whatever is mounted is there.
    policy = next(one for one in RESOURCES if one["kind"] == "NetworkPolicy")["spec"]
    templates = (CLUSTER["spec"]["headGroupSpec"], group(CLUSTER), JOB["spec"])
    for pod, owner in zip(pods, templates, strict=True):
        labels = owner["template"]["metadata"]["labels"]
        assert labels.items() >= policy["podSelector"]["matchLabels"].items()
        env = {one["name"]: one for one in pod["containers"][0]["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token"
        assert "value" not in env["RAY_AUTH_TOKEN"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes
    # The GPUs are the workers', and the batch waits for as many workers as may start.
    assert "nvidia.com/gpu" not in str(head) + str(batch)
    assert container(CLUSTER)["resources"]["limits"]["nvidia.com/gpu"] == 1
    command = shlex.split(batch["containers"][0]["args"][0].splitlines()[-1])
    assert command[command.index("--workers") + 1] == str(group(CLUSTER)["maxReplicas"])
    service = f"{CLUSTER['metadata']['name']}-head-svc:6379"
    assert batch["containers"][0]["args"][0].count(service) == 2
