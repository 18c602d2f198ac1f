"""What there is in the cloud of t2i's making, found by the labels and names that it gives."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from t2i_cli.errors import AccessError, InputError
from t2i_cli.net.gcs import Blob
from t2i_cli.net.google_http import NotFoundError
from t2i_cli.settings import store
from t2i_cli.vertex import weights_bucket
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.labels import MANAGED, Labels


@dataclass(kw_only=True)
class Deployment:
    """All that was made under one name.

    `expires` (unix seconds) is the endpoint's, for only that moves with every deployment; without
    one it is the latest of its parts'.
    """

    labels: Labels
    written: Mapping[str, str]
    """The labels as they are."""
    expires: int = 0
    endpoints: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    files: list[tuple[str, Blob]] = field(default_factory=list)
    """Each with its bucket."""

    @property
    def name(self) -> str:
        """The name that `--name` gave, or that came of the model."""
        return self.labels.name

    def deployed(self) -> list[dict[str, Any]]:
        """The deployed models: what is paid for."""
        return [one for endpoint in self.endpoints for one in endpoint.get("deployedModels", [])]

    def parts_text(self) -> list[str]:
        """What is there, for people."""
        found = [f"endpoint {endpoint['name']}" for endpoint in self.endpoints]
        found += [f"deployed model {one['id']} (this is paid for)" for one in self.deployed()]
        found += [f"model {model['name']}" for model in self.models]
        found += [f"scheduler job {job}" for job in self.jobs]
        return found + self.weights_text()

    def weights_text(self) -> list[str]:
        """What there is in buckets, for people."""
        counts = Counter(bucket for bucket, _ in self.files)
        folder = weights_bucket.weights_prefix(self.name)
        return [f"{count} files in gs://{bucket}/{folder}" for bucket, count in counts.items()]


@dataclass(kw_only=True)
class Inventory:
    """Every deployment in a place by name, the buckets that t2i made, and what it cannot see."""

    deployments: dict[str, Deployment] = field(default_factory=dict)
    buckets: set[str] = field(default_factory=set)
    unseen: list[str] = field(default_factory=list)
    all_endpoints: list[str] = field(default_factory=list)
    """The full names of every endpoint there, whoever made it."""

    def overdue(self, now: float) -> list[Deployment]:
        """Those past their TTL."""
        return [found for found in self.deployments.values() if found.expires < now]

    def deployment_of(self, written: Mapping[str, str]) -> Deployment | None:
        """The deployment that these labels belong to, None if they are not t2i's."""
        labels = Labels.of(written)
        if labels is None:
            return None
        new = Deployment(labels=labels, written=written)
        found = self.deployments.setdefault(labels.name, new)
        if not found.endpoints:
            found.expires = max(found.expires, labels.expires)
        return found


def list_endpoints(rest: GoogleClient) -> Inventory:
    """The endpoints alone, which is quick: one call."""
    found = Inventory()
    for endpoint in rest.list_all("aiplatform", f"{rest.place.parent}/endpoints", "endpoints"):
        found.all_endpoints.append(endpoint["name"])
        if one := found.deployment_of(endpoint.get("labels", {})):
            one.endpoints.append(endpoint)
    return found


def list_deployments(rest: GoogleClient, *more: str | None) -> Inventory:
    """All of it; the buckets in `more` are looked into as well as the usual ones."""
    found = list_endpoints(rest)
    parent = rest.place.parent
    buckets = {weights_bucket.default_bucket(rest.place), store.get_setting("vertex_bucket"), *more}
    for model in rest.list_all("aiplatform", f"{parent}/models", "models"):
        if one := found.deployment_of(model.get("labels", {})):
            one.models.append(model)
            for uri in weight_addresses(model):
                if uri.endswith(f"/{weights_bucket.weights_prefix(one.name)}".rstrip("/")):
                    buckets.add(uri.removeprefix("gs://").split("/")[0])
    # Without the permission, or with the interface never enabled, there is no job of t2i's.
    with suppress(AccessError, NotFoundError):
        for job in rest.list_all("cloudscheduler", f"{parent}/jobs", "jobs"):
            if one := found.deployment_of(dict(parse_qsl(job.get("description", "")))):
                one.jobs.append(job["name"])
    for place in sorted(bucket for bucket in buckets if bucket):
        try:
            _look_into(found, rest, place)
        except AccessError as error:
            found.unseen.append(f"gs://{place}: {error.message}")
    return found


def weight_addresses(model: Mapping[str, Any]) -> set[str]:
    """Where in Cloud Storage a Model resource has its container take weights from."""
    variables = model.get("containerSpec", {}).get("env", [])
    values = [model.get("artifactUri", ""), *(one.get("value", "") for one in variables)]
    return {value.rstrip("/") for value in values if value.startswith("gs://")}


def _look_into(found: Inventory, rest: GoogleClient, bucket: str) -> None:
    files = weights_bucket.list_blobs(rest, bucket, weights_bucket.WEIGHTS_ROOT)
    for marker in files:
        labels = Labels.of(marker.labels)
        # A folder that no marker claims in this very bucket may be anybody's.
        if labels is None or marker.name != weights_bucket.marker_name(labels.name):
            continue
        if owner := found.deployment_of(marker.labels):
            folder = weights_bucket.weights_prefix(labels.name)
            mine = [file for file in files if file is marker or file.name.startswith(folder)]
            owner.files += [(bucket, file) for file in mine]
    labels_there = weights_bucket.bucket_labels(rest, bucket)
    if labels_there and labels_there.get(MANAGED[0]) == MANAGED[1]:
        found.buckets.add(bucket)


def find_deployment(survey: Inventory, wanted: str) -> Deployment:
    """The deployment of that name, or with that endpoint. Raises InputError naming those there."""
    for found in survey.deployments.values():
        numbers = {endpoint["name"].split("/")[-1] for endpoint in found.endpoints}
        # Google names a project by its number, people name it by its id.
        if wanted == found.name or wanted.split("/")[-1] in numbers:
            return found
    there = ", ".join(survey.deployments) or "none"
    raise InputError(
        f"t2i has made no endpoint {wanted} here.", hint=f"Of t2i's there is: {there}."
    )


def created_at(resource: dict[str, Any]) -> float:
    """When a resource was made, in unix seconds."""
    return datetime.fromisoformat(resource["createTime"]).timestamp()


def warn_overdue(found: Iterable[Deployment], warn: Callable[[str], None]) -> None:
    """Tell of deployments that are past their TTL."""
    for one in found:
        paid = " and still paid for" if one.deployed() else ""
        warn(f"{one.name} is past its TTL{paid}; `t2i remote reap` removes it.")
