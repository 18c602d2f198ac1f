"""Finds the cloud resources that t2i created, by their labels and names."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from t2i_cli.errors import AccessError, InputError
from t2i_cli.known_names import suggest_name
from t2i_cli.net.gcs import Blob
from t2i_cli.net.google_http import NotFoundError
from t2i_cli.settings import store
from t2i_cli.vertex import weights_bucket
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.labels import MANAGED, Labels

ENDPOINTS_API = "/v1beta1/"
"""Endpoints are read by this version: v1's leave out scale to zero and flex-start."""


@dataclass(kw_only=True)
class Deployment:
    """All resources created under one deployment name.

    `expires` (unix seconds) is the endpoint's, since only that is updated with every deployment;
    without an endpoint it is the latest of the other resources'.
    """

    labels: Labels
    raw_labels: Mapping[str, str]
    """The labels as the resource has them, encoded."""
    expires: int = 0
    endpoints: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    files: list[tuple[str, Blob]] = field(default_factory=list)
    """Pairs of a bucket's name and an object in it."""
    retained: dict[str, str] = field(default_factory=dict)
    """What each bucket keeps of these files after their deletion, if it keeps any."""

    @property
    def name(self) -> str:
        """The deployment's name: of `--name`, or derived from the model."""
        return self.labels.name

    def deployed(self) -> list[dict[str, Any]]:
        """Vertex AI's DeployedModels of all endpoints; these are billed."""
        return [one for endpoint in self.endpoints for one in endpoint.get("deployedModels", [])]

    def parts_text(self) -> list[str]:
        """One line for each resource, for people."""
        found = [f"endpoint {endpoint['name']}" for endpoint in self.endpoints]
        found += [f"deployed model {one['id']} (this is paid for)" for one in self.deployed()]
        found += [f"model {model['name']}" for model in self.models]
        found += [f"scheduler job {job}" for job in self.jobs]
        return found + self.weights_text()

    def weights_text(self) -> list[str]:
        """One line for each bucket with files of the deployment, for people."""
        counts = Counter(bucket for bucket, _ in self.files)
        folder = weights_bucket.weights_prefix(self.name)
        return [f"{count} files in gs://{bucket}/{folder}" for bucket, count in counts.items()]

    def retention_text(self) -> list[str]:
        """One sentence for each bucket that keeps deleted files, for people."""
        return [
            f"gs://{bucket} keeps {kept}; what it keeps of {self.name}'s weights is paid for."
            for bucket, kept in self.retained.items()
        ]


@dataclass(kw_only=True)
class Inventory:
    """Every deployment in a location by name, and the buckets that t2i created.

    `unseen` has a sentence for each bucket that could not be listed.
    """

    deployments: dict[str, Deployment] = field(default_factory=dict)
    buckets: set[str] = field(default_factory=set)
    unseen: list[str] = field(default_factory=list)
    all_endpoints: list[str] = field(default_factory=list)
    """Full resource names of every endpoint in the location, whoever created it."""
    others: list[dict[str, Any]] = field(default_factory=list)
    """The endpoints that t2i did not create, as Vertex AI's resources."""

    def overdue(self, now: float) -> list[Deployment]:
        """The deployments past their TTL; `now` in unix seconds."""
        return [found for found in self.deployments.values() if found.expires < now]

    def find_other(self, wanted: str) -> dict[str, Any] | None:
        """The endpoint with that number or full name, if t2i did not create it.

        Raises InputError for one's display name, which others can have as well.
        """
        for endpoint in self.others:
            number = endpoint["name"].split("/")[-1]
            if wanted.split("/")[-1] == number and wanted not in self.deployments:
                return endpoint
        numbers = [
            one["name"].split("/")[-1] for one in self.others if one.get("displayName") == wanted
        ]
        if wanted and wanted not in self.deployments and numbers:
            raise InputError(
                f"t2i has made no endpoint {wanted} here; somebody else has.",
                hint=f"What t2i did not make is named by its number: {', '.join(numbers)}.",
            )
        return None

    def deployment_of(self, raw_labels: Mapping[str, str]) -> Deployment | None:
        """The deployment that these labels name, added if new; None if t2i did not write them."""
        labels = Labels.parse(raw_labels)
        if labels is None:
            return None
        new = Deployment(labels=labels, raw_labels=raw_labels)
        found = self.deployments.setdefault(labels.name, new)
        if not found.endpoints:
            found.expires = max(found.expires, labels.expires)
        return found


def list_endpoints(client: GoogleClient) -> Inventory:
    """Only the endpoints, in one list call."""
    found = Inventory()
    for endpoint in client.list_all(
        "aiplatform", f"{ENDPOINTS_API}{client.location.parent}/endpoints", "endpoints"
    ):
        found.all_endpoints.append(endpoint["name"])
        if one := found.deployment_of(endpoint.get("labels", {})):
            one.endpoints.append(endpoint)
        else:
            found.others.append(endpoint)
    return found


def list_deployments(client: GoogleClient, *more: str | None) -> Inventory:
    """All resources; lists the buckets in `more` in addition to the default and configured ones."""
    found = list_endpoints(client)
    parent = client.location.parent
    buckets = {
        weights_bucket.default_bucket(client.location),
        store.get_setting("vertex_bucket"),
        *more,
    }
    for model in client.list_all("aiplatform", f"{parent}/models", "models"):
        if one := found.deployment_of(model.get("labels", {})):
            one.models.append(model)
            for uri in weight_addresses(model):
                if uri.endswith(f"/{weights_bucket.weights_prefix(one.name)}".rstrip("/")):
                    buckets.add(uri.removeprefix("gs://").split("/")[0])
    # Without the permission, or where the API was never enabled, t2i created no job.
    with suppress(AccessError, NotFoundError):
        for job in client.list_all("cloudscheduler", f"{parent}/jobs", "jobs"):
            if one := found.deployment_of(dict(parse_qsl(job.get("description", "")))):
                one.jobs.append(job["name"])
    for bucket in sorted(name for name in buckets if name):
        try:
            _add_bucket_files(found, client, bucket)
        except AccessError as error:
            found.unseen.append(f"gs://{bucket}: {error.message}")
    return found


def weight_addresses(model: Mapping[str, Any]) -> set[str]:
    """The gs:// addresses from which a Model resource's container loads weights."""
    variables = model.get("containerSpec", {}).get("env", [])
    values = [model.get("artifactUri", ""), *(str(one.get("value", "")) for one in variables)]
    return {value.rstrip("/") for value in values if value.startswith("gs://")}


def _add_bucket_files(found: Inventory, client: GoogleClient, bucket: str) -> None:
    files = weights_bucket.list_blobs(client, bucket, weights_bucket.WEIGHTS_ROOT)
    for marker in files:
        labels = Labels.parse(marker.labels)
        # Without a marker in this bucket, the folder may belong to somebody else.
        if labels is None or marker.name != weights_bucket.marker_name(labels.name):
            continue
        if owner := found.deployment_of(marker.labels):
            folder = weights_bucket.weights_prefix(labels.name)
            mine = [file for file in files if file is marker or file.name.startswith(folder)]
            owner.files += [(bucket, file) for file in mine]
    there = weights_bucket.storage(client).bucket(bucket)
    if there is None:
        return
    if there.get("labels", {}).get(MANAGED[0]) == MANAGED[1]:
        found.buckets.add(bucket)
    if kept := weights_bucket.retention_text(there):
        for owner in found.deployments.values():
            if any(name == bucket for name, _ in owner.files):
                owner.retained[bucket] = kept


def find_deployment(inventory: Inventory, wanted: str) -> Deployment:
    """The deployment of that name, or with that endpoint. Raises InputError listing the names."""
    for found in inventory.deployments.values():
        numbers = {endpoint["name"].split("/")[-1] for endpoint in found.endpoints}
        # Compare endpoint ids: Google names a project by its number, people by its id.
        if wanted == found.name or wanted.split("/")[-1] in numbers:
            return found
    names = ", ".join(inventory.deployments) or "none"
    meant = suggest_name(wanted, inventory.deployments)
    raise InputError(
        f"t2i has made no endpoint {wanted} here.", hint=f"{meant}Of t2i's there is: {names}."
    )


def created_at(resource: Mapping[str, Any]) -> float:
    """A resource's creation time in unix seconds."""
    return datetime.fromisoformat(resource["createTime"]).timestamp()


def warn_overdue(
    found: Iterable[Deployment], warn: Callable[[str], None], region: str | None = None
) -> None:
    """Call `warn` with a sentence for each deployment past its TTL, in another `region`."""
    where = f" --region {region}" if region else ""
    for one in found:
        paid = " and still paid for" if one.deployed() else ""
        warn(f"{one.name} is past its TTL{paid}; `t2i remote reap{where}` removes it.")
