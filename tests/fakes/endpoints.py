"""Vertex AI's state and methods in the fake: models, endpoints, operations, predict.

`tests.fakes.vertex` puts them behind a server.
"""

# ruff: noqa: ANN401 - bodies are any JSON

import base64
import itertools
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tests.fakes import google_hosts, google_rules
from tests.fakes.faults import Fault, denied
from tests.fakes.google import Google, Refused, painted_png

PROJECT, NUMBER, REGION = "gallery", "123456789", "us-central1"
SHARED_LIMIT, DEDICATED_LIMIT = 1_500_000, 10_000_000
"""Bytes of a request and of an answer."""

_METADATA = {
    "upload": "UploadModel",
    "createEndpoint": "CreateEndpoint",
    "deployModel": "DeployModel",
    "undeployModel": "UndeployModel",
    "deleteEndpoint": "Delete",
    "deleteModel": "Delete",
}
"""Kinds of operations → their metadata's type."""
_STARTED_BY = {
    "upload": "models.upload",
    "createEndpoint": "endpoints.create",
    "deployModel": "endpoints.deploy",
    "undeployModel": "endpoints.undeploy",
    "deleteEndpoint": "endpoints.delete",
    "deleteModel": "models.delete",
}
"""The permission that starts each kind of operation."""

Predictor = Callable[[dict[str, Any]], tuple[int, Any]]
"""The container: the request's body as it arrives there → its status and its body."""


@dataclass
class Operation:
    """A long-running operation: at `due` (monotonic seconds) `effect` happens, or `error` shows."""

    name: str
    kind: str
    due: float
    effect: Callable[[], dict[str, Any]]
    undo: Callable[[], None] = lambda: None
    error: dict[str, Any] | None = None
    response: dict[str, Any] | None = None
    done: bool = False
    created: str = ""

    @property
    def collection(self) -> str:
        """`models` or `endpoints`: what it works on."""
        return self.name.split("/operations/")[0].split("/")[-2]

    def shown(self) -> dict[str, Any]:
        """The operation as the protocol has it."""
        kind = _METADATA.get(self.kind, "Generic")
        value: dict[str, Any] = {
            "name": self.name,
            "done": self.done,
            "metadata": {
                "@type": f"type.googleapis.com/google.cloud.aiplatform.v1.{kind}OperationMetadata",
                "genericMetadata": {"createTime": self.created, "updateTime": self.created},
            },
        }
        if self.done and self.error:
            value["error"] = self.error
        elif self.done:
            value["response"] = self.response
        return value


@dataclass
class Span:
    """Replicas of one deployed model, and since when; `end` is None while it is deployed."""

    replicas: int
    start: float
    end: float | None = None


@dataclass
class FakeVertex(Google):
    """The state of one project in one region; set failures, look at what is left and was asked."""

    endpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    predictor: Predictor = lambda body: (
        200,
        {"predictions": [painted_png(instance) for instance in body["instances"]]},
    )
    faults: list[Fault] = field(default_factory=list)
    operation_seconds: float = 0.0
    """How long an operation takes."""
    slow: dict[str, float] = field(default_factory=dict)
    """deployModel, upload, … → how long its operations take in place of that."""
    operation_errors: dict[str, dict[str, Any]] = field(default_factory=dict)
    """deployModel, upload, … → the error that its next operation ends with."""
    cancellable: bool = True
    regions: set[str] = field(default_factory=lambda: {REGION})
    """Where the project can have endpoints."""
    short_regions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Region → the error that every deployment there ends with."""
    spans: list[Span] = field(default_factory=list)
    key: Path = Path()
    tunnel: ssl.SSLContext | None = None
    """Ends the tunnels to Google's own host names."""
    predictions: list[dict[str, Any]] = field(default_factory=list)
    """Every body that reached the container."""
    in_flight: int = 0
    most_in_flight: int = 0
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1001))

    @property
    def environment(self) -> dict[str, str]:
        """What points a process here: no host of Google's is called, and a key is at hand."""
        return {
            "T2I_VERTEX_API_ENDPOINT": self.url,
            "T2I_VERTEX_REGION": REGION,
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.key),
        }

    def real_hosts(self) -> dict[str, str]:
        """What has a process call Google's own host names, which lead here through a proxy."""
        names = ("*.googleapis.com", f"*.{REGION}-{NUMBER}.prediction.vertexai.goog")
        self.tunnel, authority = google_hosts.server_context(self.key.parent, names)
        return {name: v for name, v in self.environment.items() if "API_ENDPOINT" not in name} | {
            "HTTPS_PROXY": self.url,
            "SSL_CERT_FILE": str(authority),
        }

    @property
    def replica_hours(self) -> float:
        """What is paid for so far."""
        now = self.now()
        return sum(s.replicas * ((s.end or now) - s.start) for s in self.spans) / 3600

    def left(self) -> dict[str, list[str]]:
        """Everything that still exists, by kind; nothing costs anything once this is empty."""
        self.settle()
        deployed = [d["id"] for e in self.endpoints.values() for d in e["deployedModels"]]
        found = {
            "endpoints": list(self.endpoints),
            "models": list(self.models),
            "deployed": deployed,
            **self.google_left(),
        }
        return {kind: names for kind, names in found.items() if names}

    def settle(self) -> None:
        """Let the operations that are due take effect."""
        for operation in self.operations.values():
            if not operation.done and time.monotonic() >= operation.due:
                operation.done = True
                if operation.error:
                    operation.undo()
                else:
                    operation.response = operation.effect()
        self._end_flex_starts()

    def _end_flex_starts(self) -> None:
        """Undeploy what was deployed by flex-start and has had its time."""
        for endpoint in self.endpoints.values():
            for deployed in list(endpoint["deployedModels"]):
                flex = deployed.get("dedicatedResources", {}).get("flexStart")
                if not flex:
                    continue
                end = deployed["_span"].start + float(flex["maxRuntimeDuration"].rstrip("s"))
                if end <= self.now():
                    deployed["_span"].end = end
                    endpoint["deployedModels"].remove(deployed)

    def begin(
        self,
        kind: str,
        parent: str,
        effect: Callable[[], dict[str, Any]],
        undo: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Start an operation on a resource."""
        name = f"{parent}/operations/{next(self._ids)}"
        due = time.monotonic() + self.slow.get(kind, self.operation_seconds)
        error = self.operation_errors.pop(kind, None)
        if kind == "deployModel" and error is None:
            error = self.short_regions.get(_region_of(parent))
        self.operations[name] = Operation(
            name, kind, due, effect, undo, error, created=self._stamp()
        )
        return self.operations[name].shown()

    def name(self, kind: str, number: str, region: str = REGION) -> str:
        """A resource's full name."""
        return f"projects/{NUMBER}/locations/{region}/{kind}/{number}"

    def make_endpoint(
        self,
        *,
        dedicated: bool = True,
        labels: Mapping[str, str] | None = None,
        region: str = REGION,
        deployed: Mapping[str, Any] | None = None,
    ) -> str:
        """An endpoint with a deployed model, without the way there; returns its full name.

        `deployed` has fields of the DeployedModel in place of its dedicated resources.
        """
        number = str(next(self._ids))
        model = self._add_model({"displayName": "a model"}, str(next(self._ids)))
        endpoint = {
            "displayName": "an endpoint",
            "labels": dict(labels or {}),
            "dedicatedEndpointEnabled": dedicated,
        }
        name = self._add_endpoint(endpoint, number).replace(REGION, region)
        self.endpoints[number]["name"] = name
        resources = {"machineSpec": {"machineType": "n1-standard-4"}, "minReplicaCount": 1}
        fields = {"dedicatedResources": resources} if deployed is None else dict(deployed)
        self._add_deployed(number, {"id": "77", "model": model} | fields)
        self.endpoints[number]["trafficSplit"] = {"77": 100}
        return name

    def fire_jobs(self) -> list[int]:
        """Do what Cloud Scheduler would: run the jobs that are due; the statuses of the answers."""
        now = time.gmtime(self.now())
        statuses = []
        for job in self.jobs.values():
            minute, hour, day, month, _ = map(int, job["schedule"].replace("*", "0").split())
            due = (month, day, hour, minute)
            if due > (now.tm_mon, now.tm_mday, now.tm_hour, now.tm_min):
                continue
            target = job["httpTarget"]
            request = Request(  # noqa: S310 - this very server
                self.url + urlsplit(target["uri"]).path,
                method=target["httpMethod"],
                headers=target["headers"] | {"Authorization": "Bearer ya29.scheduler"},
                data=base64.b64decode(target["body"]),
            )
            try:
                with urlopen(request) as answer:  # noqa: S310
                    statuses.append(answer.status)
            except HTTPError as error:
                statuses.append(error.code)
        return statuses

    def _stamp(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.now()))

    def _add_model(self, model: dict[str, Any], number: str, region: str = REGION) -> str:
        name = self.name("models", number, region)
        self.models[number] = model | {
            "name": name,
            "createTime": self._stamp(),
            "versionId": "1",
            # Without it Google's own client drops machine and accelerator.
            "supportedDeploymentResourcesTypes": ["DEDICATED_RESOURCES"],
        }
        return name

    def _add_endpoint(self, endpoint: dict[str, Any], number: str, region: str = REGION) -> str:
        name = self.name("endpoints", number, region)
        self.endpoints[number] = endpoint | {
            "name": name,
            "createTime": self._stamp(),
            "deployedModels": [],
        }
        if endpoint.get("dedicatedEndpointEnabled"):
            dns = f"{number}.{region}-{NUMBER}.prediction.vertexai.goog"
            self.endpoints[number]["dedicatedEndpointDns"] = dns
        return name

    def _add_deployed(self, number: str, deployed: dict[str, Any]) -> dict[str, Any]:
        resources = deployed.get("dedicatedResources", {})
        span = Span(int(resources.get("minReplicaCount") or 0), self.now())
        self.spans.append(span)
        value = deployed | {"createTime": self._stamp()}
        self.endpoints[number]["deployedModels"].append(value | {"_span": span})
        return value

    # The protocol's methods. `match` is the path's, `query` the query's first values.

    def upload_model(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        number = body.get("modelId") or str(next(self._ids))
        if number in self.models:
            raise Refused(409, "ALREADY_EXISTS", f"Model {number} already exists.")
        if not body["model"].get("displayName"):
            raise Refused(400, "INVALID_ARGUMENT", "display_name is required.")
        kind = "type.googleapis.com/google.cloud.aiplatform.v1.UploadModelResponse"

        def effect() -> dict[str, Any]:
            name = self._add_model(body["model"], number, match["region"])
            return {"@type": kind, "model": name, "modelVersionId": "1"}

        return self.begin("upload", self.name("models", number, match["region"]), effect)

    def create_endpoint(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        number = query.get("endpointId") or str(next(self._ids))
        if number in self.endpoints:
            raise Refused(409, "ALREADY_EXISTS", f"Endpoint {number} already exists.")
        kind = "type.googleapis.com/google.cloud.aiplatform.v1.Endpoint"

        def effect() -> dict[str, Any]:
            self._add_endpoint(body, number, match["region"])
            return {"@type": kind} | self._shown(self.endpoints[number])

        name = self.name("endpoints", number, match["region"])
        return self.begin("createEndpoint", name, effect)

    def deploy(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        endpoint = self._found(self.endpoints, match["id"], "Endpoint")
        known = {"0", *(one["id"] for one in endpoint["deployedModels"])}
        google_rules.check_traffic(body.get("trafficSplit", {}), known)
        resources = body["deployedModel"].get("dedicatedResources", {})
        if "scaleToZeroSpec" in resources and not endpoint.get("dedicatedEndpointEnabled"):
            raise google_rules.invalid("Scale to zero needs a dedicated endpoint.")
        return self.begin_deployment(match["id"], body)

    def begin_deployment(self, number: str, body: Any) -> Any:
        """Start to deploy a model, as a request's body asks for it."""
        endpoint = self._found(self.endpoints, number, "Endpoint")
        deployed = body["deployedModel"]
        deployed["model"] = deployed["model"].split("@")[0]
        resources = deployed.get("dedicatedResources", {})
        if not resources.get("machineSpec", {}).get("machineType"):
            raise Refused(400, "INVALID_ARGUMENT", "machine_type is required.")
        if "scaleToZeroSpec" not in resources and not resources.get("minReplicaCount"):
            raise Refused(400, "INVALID_ARGUMENT", "min_replica_count must be at least 1.")
        self._found(self.models, deployed["model"].split("/")[-1], "Model")
        if deployed.get("id") in {one["id"] for one in endpoint["deployedModels"]}:
            raise Refused(409, "ALREADY_EXISTS", f"DeployedModel {deployed['id']} exists.")
        split = body.get("trafficSplit", {})
        deployed = {"id": str(next(self._ids))} | deployed
        endpoint["_deploying"] = endpoint.get("_deploying", 0) + 1
        kind = "type.googleapis.com/google.cloud.aiplatform.v1.DeployModelResponse"

        def undo() -> None:
            endpoint["_deploying"] -= 1

        def effect() -> dict[str, Any]:
            undo()
            added = self._add_deployed(number, deployed)
            if split:
                endpoint["trafficSplit"] = {
                    added["id"] if one == "0" else one: share for one, share in split.items()
                }
            return {"@type": kind, "deployedModel": self._shown(added)}

        return self.begin("deployModel", endpoint["name"], effect, undo)

    def undeploy(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        endpoint = self._found(self.endpoints, match["id"], "Endpoint")
        wanted = body["deployedModelId"]
        here = [d for d in endpoint["deployedModels"] if d["id"] == wanted]
        if not here:
            raise Refused(404, "NOT_FOUND", f"Deployed model {wanted} is not found.")
        others = {one["id"] for one in endpoint["deployedModels"]} - {wanted}
        split = body.get("trafficSplit", endpoint.get("trafficSplit", {}))
        google_rules.check_traffic(body.get("trafficSplit", {}), others)
        if others and split.get(wanted):
            message = f"The DeployedModel {wanted} has traffic: assign it to another one first."
            raise Refused(400, "FAILED_PRECONDITION", message)
        kind = "type.googleapis.com/google.cloud.aiplatform.v1.UndeployModelResponse"

        def effect() -> dict[str, Any]:
            for deployed in here:
                if deployed in endpoint["deployedModels"]:  # or another undeployment was first
                    deployed["_span"].end = self.now()
                    endpoint["deployedModels"].remove(deployed)
            endpoint["trafficSplit"] = split if endpoint["deployedModels"] else {}
            return {"@type": kind}

        return self.begin("undeployModel", endpoint["name"], effect)

    def delete_endpoint(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        endpoint = self._found(self.endpoints, match["id"], "Endpoint")
        if endpoint["deployedModels"] or endpoint.get("_deploying"):
            message = "The Endpoint has deployed or being-deployed DeployedModels."
            raise Refused(400, "FAILED_PRECONDITION", message)
        return self._deletion("deleteEndpoint", endpoint["name"], self.endpoints)

    def delete_model(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        model = self._found(self.models, match["id"], "Model")
        users = [
            e["name"]
            for e in self.endpoints.values()
            if any(d["model"].endswith(f"/{match['id']}") for d in e["deployedModels"])
        ]
        if users:
            raise Refused(400, "FAILED_PRECONDITION", f"The Model is deployed at {users}.")
        return self._deletion("deleteModel", model["name"], self.models)

    def _deletion(self, kind: str, name: str, where: dict[str, dict[str, Any]]) -> Any:
        def effect() -> dict[str, Any]:
            where.pop(name.split("/")[-1], None)
            return {"@type": "type.googleapis.com/google.protobuf.Empty"}

        return self.begin(kind, name, effect)

    def get_endpoint(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        return self._shown(self._found(self.endpoints, match["id"], "Endpoint"), match["version"])

    def patch_endpoint(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        endpoint = self._found(self.endpoints, match["id"], "Endpoint")
        known = {one["id"] for one in endpoint["deployedModels"]}
        google_rules.check_traffic(body.get("trafficSplit", {}), known)
        for name in query["updateMask"].split(","):
            endpoint[name] = body.get(name, {})
        return self._shown(endpoint, match["version"])

    def get_model(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        return self._found(self.models, match["id"], "Model")

    def list_endpoints(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        here = _in_region(self.endpoints, match["region"])
        return self._page("endpoints", here, query, match["version"])

    def list_locations(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        """As Google's locations.proto has it; `global` is no region."""
        parent = f"projects/{match['project']}/locations"
        return {
            "locations": [
                {"name": f"{parent}/{one}", "locationId": one}
                for one in sorted({*self.regions, "global"})
            ]
        }

    def list_models(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        return self._page("models", _in_region(self.models, match["region"]), query)

    def get_operation(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        operation = self._operation(match["name"])
        self._need_one_of(operation, f"aiplatform.{operation.collection}.get")
        return operation.shown()

    def _operation(self, name: str) -> Operation:
        name = name.replace(f"projects/{PROJECT}/", f"projects/{NUMBER}/")
        if name not in self.operations:
            raise Refused(404, "NOT_FOUND", f"Operation {name} is not found.")
        return self.operations[name]

    def _need_one_of(self, operation: Operation, *permissions: str) -> None:
        """Raise 403 for whoever has none of these, nor what it takes to start the operation.

        IAM lists aiplatform.operations.list and no other permission of operations; that who may
        start one may look at it and cancel it is an assumption.
        """
        starts = f"aiplatform.{_STARTED_BY.get(operation.kind, '')}"
        if self.granted is not None and not self.granted & {starts, *permissions}:
            raise Refused(403, "PERMISSION_DENIED", denied(starts, operation.name))

    def cancel_operation(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        operation = self._operation(match["name"])
        self._need_one_of(operation)
        if not operation.done and self.cancellable:
            operation.due = 0.0
            operation.error = {"code": 1, "message": "The operation was cancelled."}
        return {}

    def count_requests(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        """Cloud Monitoring's count of what one endpoint answered."""
        (number,) = re.findall(r'endpoint_id="(\w+)"', query["filter"])
        count = sum(path.endswith(f"endpoints/{number}:predict") for _, path in self.requests)
        point = {"value": {"int64Value": str(count)}}
        return {"timeSeries": [{"points": [point]}] if count else []}

    def list_operations(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        name = self.name(match["kind"], match["id"], match["region"])
        found = [o.shown() for o in self.operations.values() if o.name.startswith(f"{name}/")]
        return {"operations": found}

    def predict(self, match: re.Match[str], body: Any, query: dict[str, str]) -> Any:
        """Forward to the container, as Vertex does: every number becomes a double on the way."""
        endpoint = self._found(self.endpoints, match["id"], "Endpoint")
        if not endpoint["deployedModels"]:
            raise Refused(400, "FAILED_PRECONDITION", "The Endpoint has no deployed model.")
        if not endpoint.get("trafficSplit"):
            raise Refused(400, "FAILED_PRECONDITION", "The Endpoint has no traffic split.")
        limit = DEDICATED_LIMIT if endpoint.get("dedicatedEndpointEnabled") else SHARED_LIMIT
        if len(json.dumps(body)) > limit:
            message = f"The request size exceeds the limit: {limit} bytes."
            raise Refused(400, "FAILED_PRECONDITION", message)
        asked = _doubles(body)
        self.predictions.append(asked)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            status, answer = self.predictor(asked)
        finally:
            self.in_flight -= 1
        if status != 200:
            raise Refused(status, "", "", body=answer)
        if len(json.dumps(answer)) > limit:
            message = f"The response size exceeds the limit: {limit} bytes."
            raise Refused(400, "FAILED_PRECONDITION", message)
        deployed = endpoint["deployedModels"][0]
        return answer | {
            "deployedModelId": deployed["id"],
            "model": deployed["model"],
            "modelDisplayName": self.models[deployed["model"].split("/")[-1]]["displayName"],
            "modelVersionId": "1",
        }

    def _found(self, where: dict[str, dict[str, Any]], number: str, kind: str) -> dict[str, Any]:
        if number not in where:
            raise Refused(404, "NOT_FOUND", f"{kind} `{number}` is not found.")
        return where[number]

    def _page(
        self,
        kind: str,
        where: dict[str, dict[str, Any]],
        query: dict[str, str],
        version: str = "",
    ) -> Any:
        """Two a page, so that a client must ask for the next one; filters by label equality."""
        wanted = re.findall(r'labels\.([\w-]+)="?([\w-]+)"?', query.get("filter", ""))
        found = [
            self._shown(v, version)
            for v in where.values()
            if all(v.get("labels", {}).get(k) == w for k, w in wanted)
        ]
        start = int(query.get("pageToken") or 0)
        page: dict[str, Any] = {kind: found[start : start + 2]}
        if len(found) > start + 2:
            page["nextPageToken"] = str(start + 2)
        return page

    def _shown(self, resource: dict[str, Any], version: str = "") -> dict[str, Any]:
        """The resource without the fake's own notes; an Endpoint as this version has it."""
        value: dict[str, Any] = _public(resource)
        return google_rules.shown_in_version(version, "Endpoint", value) if version else value


def _region_of(name: str) -> str:
    return name.split("/locations/")[1].split("/")[0]


def _in_region(where: dict[str, dict[str, Any]], region: str) -> dict[str, dict[str, Any]]:
    return {number: one for number, one in where.items() if _region_of(one["name"]) == region}


def _public(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {k: _public(v) for k, v in value.items() if not k.startswith("_")}
    return [_public(v) for v in value] if isinstance(value, list) else deepcopy(value)


def _doubles(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {k: _doubles(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_doubles(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
