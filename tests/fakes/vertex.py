"""Google Cloud on loopback, as far as t2i uses it: Vertex AI's published REST protocol.

Models, endpoints, deployments with long-running operations, and predict are in
`tests.fakes.endpoints`; storage, IAM, the scheduler and tokens in `tests.fakes.google`. One server
plays every host, so that `T2I_VERTEX_API_ENDPOINT` alone leads to it. It has a clock of its own,
and fails on demand: `tests.fakes.faults`.
"""

# ruff: noqa: ANN401 - bodies are any JSON

import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fakes import google_hosts, google_keys, google_rules
from tests.fakes.endpoints import NUMBER, PROJECT, REGION, FakeVertex
from tests.fakes.faults import (
    Fault,
    asleep,
    asleep_in_text,
    bad_request,
    cut_off,
    denied,
    forbidden,
    handler_exception,
    not_an_image,
    not_found,
    operations_unimplemented,
    overloaded,
    overloaded_in_text,
    polling_fails,
    quota,
    quota_metric,
    session_expired,
    stock_out,
    truncated_base64,
)
from tests.fakes.google import Refused
from tests.fakes.oauth import FakeOAuth

__all__ = [
    "FakeVertex",
    "Fault",
    "NUMBER",
    "PROJECT",
    "REGION",
    "asleep",
    "asleep_in_text",
    "bad_request",
    "counted",
    "cut_off",
    "denied",
    "forbidden",
    "handler_exception",
    "not_an_image",
    "not_found",
    "operations_unimplemented",
    "overloaded",
    "overloaded_in_text",
    "polling_fails",
    "quota",
    "quota_metric",
    "running_vertex",
    "session_expired",
    "stock_out",
    "truncated_base64",
]

_BASE = r"/(?P<version>v1|v1beta1)/projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)"
_ONE = r"/(?P<kind>{})/(?P<id>[^/:@]+)(?:@\d+)?"
_ENDPOINT, _MODEL = _BASE + _ONE.format("endpoints"), _BASE + _ONE.format("models")
_OPERATION = r"/(?P<version>v1|v1beta1)/(?P<name>projects/.+/operations/\d+)"
_AIPLATFORM: tuple[tuple[str, str, str, str], ...] = (
    (
        "GET",
        r"/(?P<version>v1)/projects/(?P<project>[^/]+)/locations",
        "list_locations",
        "locations.list",
    ),
    ("POST", _BASE + "/models:upload", "upload_model", "models.upload"),
    ("GET", _BASE + "/models", "list_models", "models.list"),
    ("GET", _MODEL, "get_model", "models.get"),
    ("DELETE", _MODEL, "delete_model", "models.delete"),
    ("POST", _BASE + "/endpoints", "create_endpoint", "endpoints.create"),
    ("GET", _BASE + "/endpoints", "list_endpoints", "endpoints.list"),
    ("GET", _ENDPOINT, "get_endpoint", "endpoints.get"),
    ("PATCH", _ENDPOINT, "patch_endpoint", "endpoints.update"),
    ("DELETE", _ENDPOINT, "delete_endpoint", "endpoints.delete"),
    ("POST", _ENDPOINT + ":deployModel", "deploy", "endpoints.deploy"),
    ("POST", _ENDPOINT + ":undeployModel", "undeploy", "endpoints.undeploy"),
    ("POST", _ENDPOINT + ":predict", "predict", "endpoints.predict"),
    ("GET", _OPERATION, "get_operation", ""),
    ("POST", _OPERATION + ":cancel", "cancel_operation", ""),
    ("GET", r"/v3/projects/(?P<project>[^/]+)/timeSeries", "count_requests", "monitoring"),
    (
        "GET",
        _BASE + _ONE.format("endpoints|models") + "/operations",
        "list_operations",
        "operations.list",
    ),
)


@contextmanager
def running_vertex(folder: Path) -> Iterator[FakeVertex]:
    """The cloud on a free port until the block ends; its key file is put into the folder."""
    state = FakeVertex()

    class Handler(_Handler):
        vertex = state

    server = _Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    state.key = FakeOAuth(url=state.url).key_file(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed reset their connections, which is nothing to tell."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    vertex: FakeVertex
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    _cut = False

    def log_message(self, *_: object) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The Date header, by the fake's clock."""
        return super().date_time_string(self.vertex.now() if timestamp is None else timestamp)

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def do_CONNECT(self) -> None:
        """End a tunnel to one of Google's hosts here; its requests follow on this connection."""
        if self.vertex.tunnel is None:
            self.send_error(405)
            return
        self.send_response(200)
        self.end_headers()
        self.connection = self.vertex.tunnel.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def finish(self) -> None:
        """Close the tunnel, too: the server knows of the connection below it only."""
        super().finish()
        if self.connection is not self.request:
            self.connection.close()

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        if len(content) < length:
            # The client died in the middle of its request: nobody acts on a part of one.
            self.close_connection = True
            return
        address = urlsplit(self.path)
        path = unquote(address.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        self.vertex.requests.append((self.command, path))
        self.vertex.seen_headers.append(dict(self.headers))
        self._cut = False
        try:
            with self.vertex.lock:
                fault = self._fault(path)
            if fault and self._fails(fault):
                return
            if fault and fault.answer is not None:
                self._json({"predictions": fault.answer, "deployedModelId": "77"})
                return
            self._route(path, query, content)
        except Refused as error:
            self._json(error.body, error.status)
        except ConnectionError:
            # The client went away, which some tests want.
            self.close_connection = True

    def _fault(self, path: str) -> Fault | None:
        """The first fault that is meant for this request; it is used up by one."""
        for fault in self.vertex.faults:
            if fault.times > 0 and re.search(fault.where, f"{self.command} {path}"):
                if fault.after > 0:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def _fails(self, fault: Fault) -> bool:
        """Act on the fault; whether the request is over by it."""
        if fault.stall:
            self.vertex.closing.wait(fault.stall)
            self.close_connection = True
            return True
        self._cut = fault.cut
        if fault.status and isinstance(fault.body, bytes):
            self.send(fault.status, fault.headers, fault.body)
            return True
        if fault.status and fault.text is not None:
            headers = {"Content-Type": "text/plain; charset=utf-8"} | fault.headers
            self.send(fault.status, headers, fault.text.encode())
            return True
        if fault.status:
            self._json(fault.body, fault.status, fault.headers)
            return True
        return False

    def _route(self, path: str, query: dict[str, str], content: bytes) -> None:
        google_keys.check_request(self.command, path, query, content)
        if self.vertex.google_route(self, path, query, content):
            return
        for method, pattern, name, permission in _AIPLATFORM:
            match = re.fullmatch(pattern, path)
            if not match or method != self.command:
                continue
            full = f"aiplatform.{permission}" if permission else ""
            if permission == "monitoring":
                full = "monitoring.timeSeries.list"
            self.vertex.allow(self, full, path)
            fields = match.groupdict()
            if fields.get("project", PROJECT) not in {PROJECT, NUMBER}:
                raise Refused(403, "PERMISSION_DENIED", denied(full, path))
            if fields.get("region", REGION) not in self.vertex.regions:
                raise Refused(404, "NOT_FOUND", f"Nothing is in {fields['region']}.")
            number = fields.get("id")
            google_hosts.check_host(
                self.headers.get("Host", ""),
                number,
                name,
                dedicated=bool(
                    self.vertex.endpoints.get(number or "", {}).get("dedicatedEndpointEnabled")
                ),
            )
            body = self._checked_body(name, fields, query, content)
            answer = getattr(self.vertex, name)
            if name == "predict":
                # Predictions run beside each other.
                self._json(answer(match, body, query))
                return
            with self.vertex.lock:
                self.vertex.settle()
                value = answer(match, body, query)
                if "operations" in (value.get("name") or ""):
                    self.vertex.settle()
                    value = self.vertex.operations[value["name"]].shown()
            self._json(value)
            return
        raise Refused(404, "NOT_FOUND", f"The fake has no {self.command} {path}.")

    def _checked_body(
        self, name: str, fields: dict[str, Any], query: dict[str, str], content: bytes
    ) -> Any:
        """The body as Google understands it; a prediction's as it was sent. Raises Refused."""
        try:
            body = json.loads(content or b"{}")
        except ValueError as error:
            raise google_rules.invalid("Invalid JSON payload received.") from error
        if name == "count_requests":
            return body
        whole = "gapic" in self.headers.get("x-goog-api-client", "")
        request = google_rules.parsed_request(
            name, fields["version"], fields, query, body, whole=whole
        )
        if request is None or name == "predict":
            return body
        value = google_rules.json_of_message(request)
        return value["endpoint"] if name in {"create_endpoint", "patch_endpoint"} else value

    def _json(
        self, value: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        body = json.dumps(value).encode()
        self.send(status, {"Content-Type": "application/json"} | dict(headers or {}), body)

    def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """One answer, whole or, on demand, cut in the middle."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self._cut else body)
        if self._cut:
            self.close_connection = True


def counted(vertex: FakeVertex) -> Counter[str]:
    """How often each kind of request arrived, as `POST predict`."""
    return Counter(
        f"{method} {re.split('[/:]', path)[-1]}" for method, path in list(vertex.requests)
    )
