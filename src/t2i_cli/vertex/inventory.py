"""Finds the cloud resources that t2i created, by their labels and names."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from t2i_cli.errors import AccessError, InputError, T2IError
from t2i_cli.known_names import suggest_name
from t2i_cli.net.gcs import Blob
from t2i_cli.net.google_http import DisabledError, NotFoundError
from t2i_cli.settings import store
from t2i_cli.vertex import endpoint_store, weights_bucket
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

    `unseen` has a sentence for each bucket that could not be listed. `unlisted` has the error for
    each other kind of resource that could not.
    """

    deployments: dict[str, Deployment] = field(default_factory=dict)
    buckets: set[str] = field(default_factory=set)
    unseen: list[str] = field(default_factory=list)
    unlisted: dict[str, T2IError] = field(default_factory=dict)
    all_endpoints: list[str] = field(default_factory=list)
    """Full resource names of every endpoint in the location, whoever created it."""
    others: list[dict[str, Any]] = field(default_factory=list)
    """The endpoints that t2i did not create, as Vertex AI's resources."""

    def unlisted_text(self) -> list[str]:
        """A sentence for each kind of resource that could not be listed."""
        return [f"{what} cannot be looked at: {why.message}" for what, why in self.unlisted.items()]

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
    _add_endpoints(found, client)
    return found


def list_deployments(
    client: GoogleClient, *more: str | None, partial: bool = False, known: Iterable[str] = ()
) -> Inventory:
    """All resources; lists the buckets in `more` in addition to the default and configured ones.

    With `partial`, what cannot be listed is noted in the inventory in place of raising its error;
    in place of the list of endpoints, those in `known` and those that this machine remembers are
    looked up by their names.
    """
    found = Inventory()
    with _noting_errors(found, "endpoints", partial=partial):
        _add_endpoints(found, client)
    if "endpoints" in found.unlisted:
        _add_known_endpoints(found, client, known)
    parent = client.location.parent
    buckets = {
        weights_bucket.default_bucket(client.location),
        store.get_setting("vertex_bucket"),
        *more,
    }
    with _noting_errors(found, "models", partial=partial):
        for model in client.list_all("aiplatform", f"{parent}/models", "models"):
            if one := found.deployment_of(model.get("labels", {})):
                one.models.append(model)
                for uri in weight_addresses(model):
                    if uri.endswith(f"/{weights_bucket.weights_prefix(one.name)}".rstrip("/")):
                        buckets.add(uri.removeprefix("gs://").split("/")[0])
    with _noting_errors(found, "scheduler jobs", partial=partial):
        _add_jobs(found, client, partial=partial)
    for bucket in sorted(name for name in buckets if name):
        try:
            _add_bucket_files(found, client, bucket)
        except T2IError as error:
            if not (partial or isinstance(error, AccessError)):
                raise
            found.unseen.append(f"gs://{bucket}: {error.message}")
            continue
        with _noting_errors(found, f"bucket gs://{bucket}", partial=partial):
            _add_bucket(found, client, bucket)
    return found


@contextmanager
def _noting_errors(found: Inventory, what: str, *, partial: bool) -> Iterator[None]:
    """Note the block's T2IError as the reason why `what` is not listed; without `partial`, raise.

    A bucket's labels tell only whether t2i made the bucket: where they are refused, it did not.
    """
    try:
        yield
    except T2IError as error:
        if not (partial or (isinstance(error, AccessError) and what.startswith("bucket "))):
            raise
        found.unlisted[what] = error


def _add_endpoints(found: Inventory, client: GoogleClient) -> None:
    for endpoint in client.list_all(
        "aiplatform", f"{ENDPOINTS_API}{client.location.parent}/endpoints", "endpoints"
    ):
        found.all_endpoints.append(endpoint["name"])
        if one := found.deployment_of(endpoint.get("labels", {})):
            one.endpoints.append(endpoint)
        else:
            found.others.append(endpoint)


def _add_known_endpoints(found: Inventory, client: GoogleClient, known: Iterable[str]) -> None:
    """Add the endpoints in `known` and those that this machine remembers, as far as they exist."""
    remembered = (record.name for record in endpoint_store.list_records())
    numbers = {
        name.split("/")[-1]
        for name in (*known, *remembered)
        if "/" not in name or name.split("/")[3:4] == [client.location.region]
    }
    for number in sorted(numbers - {name.split("/")[-1] for name in found.all_endpoints}):
        try:
            endpoint = client.call(
                "GET", "aiplatform", f"{ENDPOINTS_API}{client.location.endpoint(number)}"
            )
        except NotFoundError:
            continue
        except T2IError as error:
            found.unlisted[f"endpoint {number}"] = error
            continue
        if one := found.deployment_of(endpoint.get("labels", {})):
            one.endpoints.append(endpoint)
        else:
            found.others.append(endpoint)


def _add_jobs(found: Inventory, client: GoogleClient, *, partial: bool) -> None:
    try:
        for job in client.list_all("cloudscheduler", f"{client.location.parent}/jobs", "jobs"):
            if one := found.deployment_of(dict(parse_qsl(job.get("description", "")))):
                one.jobs.append(job["name"])
    except (DisabledError, NotFoundError):
        return  # where the API was never enabled, t2i created no job
    except AccessError:
        if partial:
            raise


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


def _add_bucket(found: Inventory, client: GoogleClient, bucket: str) -> None:
    """Note whether t2i made the bucket, and what it keeps of deleted weights."""
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
