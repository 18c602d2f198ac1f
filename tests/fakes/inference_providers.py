"""Hugging Face's router, its seven providers of images and their file hosts, on loopback.

An HTTPS proxy: it answers for the hosts themselves, with certificates of an authority of its own,
so that a whole process speaks to the real names. The Hub's look-up of a model's providers is plain
HTTP on the same port. Bodies are those that huggingface_hub 2.4 builds; other fields are refused.
"""

import base64
import datetime
import hashlib
import io
import json
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

Body = dict[str, Any]

TOKEN = "hf_" + "fake" * 6
ROUTER = "router.huggingface.co"
FILE_HOSTS = {
    "fal-ai": "v3.fal.media",
    "replicate": "replicate.delivery",
    "wavespeed": "d2p7pge43lyniu.cloudfront.net",
    "zai-org": "mfile.z.ai",
}
"""Where the providers that answer with links keep their images."""
HOSTS = (ROUTER, *FILE_HOSTS.values())
REPO = "black-forest-labs/FLUX.1-Krea-dev"
MODEL_IDS = {
    "hf-inference": REPO,
    "fal-ai": "fal-ai/flux/dev",
    "replicate": "black-forest-labs/flux-dev",
    "together": "black-forest-labs/FLUX.1-dev",
    "nscale": "black-forest-labs/FLUX.1-dev",
    "wavespeed": "wavespeed-ai/flux-dev",
    "zai-org": "glm-image",
}

_SETTINGS: Body = {
    "negative_prompt": str,
    "num_inference_steps": int,
    "guidance_scale": (int, float),
    "seed": int,
}
_SIDES: Body = {"width": int, "height": int}
_FIELDS: dict[str, Body] = {
    "hf-inference": {"inputs": str, "parameters": dict},
    "fal-ai": {"prompt": str, "image_size": dict, "output_format": str, **_SETTINGS},
    "replicate": {"input": dict, "version": str},
    "together": {
        **{"prompt": str, "model": str, "response_format": str, "steps": int},
        **{name: kind for name, kind in _SETTINGS.items() if name != "num_inference_steps"},
        **_SIDES,
    },
    "nscale": {"prompt": str, "model": str, "response_format": str, "size": str},
    "wavespeed": {"prompt": str, "size": str, **_SETTINGS},
    "zai-org": {"prompt": str, "model": str, "size": str, "quality": str},
}
"""The fields of each provider's body, with their types."""
_INNER_FIELDS: Body = {
    "parameters": {**_SETTINGS, **_SIDES, "scheduler": str},
    "input": {"prompt": str, **_SETTINGS, **_SIDES, "output_format": str},
    "image_size": _SIDES,
}


@dataclass(kw_only=True)
class Fault:
    """One way to fail, for `times` requests whose `METHOD host/path` matches `where`."""

    where: str = "POST "
    status: int = 0
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    """The whole body to answer with."""
    stall: float = 0.0
    """Seconds without an answer; the connection is then closed."""
    cut: bool = False
    """Do what is asked, and close the connection in the middle of the answer."""
    times: int = 1


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request that arrived."""

    method: str
    host: str
    path: str
    headers: Mapping[str, str]


@dataclass
class FakeProviders:
    """The state: who serves what, how it fails, and what was asked and made."""

    port: int = 0
    ca_file: Path = Path()
    mapping: Any = None
    """What the Hub says of every model: the providers' entries, as an object or a list."""
    pipeline_tag: str = "text-to-image"
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    asked: list[Body] = field(default_factory=list)
    """The bodies of submissions, those that were refused included."""
    made: list[Body] = field(default_factory=list)
    """The bodies that images were made of, each billed."""
    size: tuple[int, int] = (64, 48)
    """Of an image whose size is not asked for."""
    format: str = "PNG"
    unready: int = 0
    """Questions for its state before an image is ready."""
    pause: float = 0.0
    """Seconds that an image takes."""
    link: str | None = None
    """The address to give in place of an image's own."""
    files: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, Body] = field(default_factory=dict)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)
    context: ssl.SSLContext = field(default_factory=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    @property
    def environment(self) -> dict[str, str]:
        """What points a process at these hosts, with a token."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "HF_TOKEN": TOKEN,
            "HTTPS_PROXY": f"http://127.0.0.1:{self.port}",
            "SSL_CERT_FILE": str(self.ca_file),
        }

    def next_fault(self, where: str) -> Fault | None:
        """The first fault for such a request; one of it is used up."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.where, where):
                    fault.times -= 1
                    return fault
        return None

    def picture(self, body: Body, size: tuple[int, int]) -> bytes:
        """An image file in one colour that follows from what is asked."""
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
        stream = io.BytesIO()
        Image.new("RGB", size, tuple(digest[:3])).save(stream, self.format)
        return stream.getvalue()


def mapping_of(*providers: str, status: str = "live", task: str = "text-to-image") -> Body:
    """The Hub's entries of these providers, in the form of a single model's answer."""
    return {
        name: {
            "status": status,
            "providerId": MODEL_IDS[name],
            "task": task,
            "isModelAuthor": False,
        }
        for name in providers
    }


@contextmanager
def running_providers(folder: Path) -> Iterator[FakeProviders]:
    """The hosts on a free port until the block ends; `folder` gets the certificates."""
    state = FakeProviders(mapping=mapping_of(*MODEL_IDS))
    state.ca_file = folder / "ca.pem"
    state.context.load_cert_chain(_write_certificates(folder))

    class Handler(_Handler):
        state_of_hosts = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _RefusedError(Exception):
    """A request that the real host would refuse; `body` is its answer."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class _Handler(BaseHTTPRequestHandler):
    state_of_hosts: FakeProviders
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    host = ""

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError, ssl.SSLError, TimeoutError):
            super().handle()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        if self.host:
            self.connection.close()

    def do_CONNECT(self) -> None:
        host, _, port = self.path.partition(":")
        if host not in HOSTS or port != "443":
            self._json({"error": f"No route to {self.path}"}, 502)
            return
        self.send_response(200)
        self.end_headers()
        self.host = host
        self.connection = self.state_of_hosts.context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, body: Body | None) -> None:
        state = self.state_of_hosts
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(method=self.command, host=self.host, path=self.path, headers=headers)
        state.seen.append(seen)
        if body is not None:
            state.asked.append(body)
        fault = state.next_fault(f"{self.command} {self.host}{self.path}")
        if fault and fault.stall:
            state.closing.wait(fault.stall)
            self.close_connection = True
            return
        try:
            if fault and fault.raw is not None:
                self._send(fault.status or 200, fault.raw, "text/plain", fault.headers)
            elif fault and fault.status:
                self._json(fault.body, fault.status, fault.headers)
            else:
                self._answer(body, cut=bool(fault and fault.cut))
        except _RefusedError as refused:
            self._json(refused.body, refused.status)

    def _answer(self, body: Body | None, *, cut: bool) -> None:
        state = self.state_of_hosts
        if not self.host:
            self._hub()
        elif self.host != ROUTER:
            if "Authorization" in self.headers:
                raise _RefusedError(400, "A token of the Hub reached a host of files.")
            if (found := state.files.get(f"{self.host}{self.path}")) is None:
                raise _RefusedError(404, "No such file.")
            self._send(200, found, f"image/{state.format.lower()}", cut=cut)
        else:
            self._authorise()
            _, provider, route = self.path.split("/", 2)
            if body is None:
                self._json(self._job(provider, route))
                return
            with state.lock:
                state.in_flight += 1
                state.most_in_flight = max(state.most_in_flight, state.in_flight)
            try:
                state.closing.wait(state.pause)
                self._submission(provider, route, body, cut=cut)
            finally:
                with state.lock:
                    state.in_flight -= 1

    def _hub(self) -> None:
        state = self.state_of_hosts
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in {"", TOKEN}:
            refused = {"X-Error-Message": "Invalid credentials in Authorization header"}
            self._json({"error": "Invalid credentials in Authorization header"}, 401, refused)
            return
        path, _, query = self.path.partition("?")
        if not (match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path)):
            raise _RefusedError(404, {"error": "Not found"})
        if query == "expand=inferenceProviderMapping":
            self._json({"_id": "1", "id": match[1], "inferenceProviderMapping": state.mapping})
        elif not query:
            self._json({"_id": "1", "id": match[1], "pipeline_tag": state.pipeline_tag})
        else:
            raise _RefusedError(400, {"error": f"Unknown query {query}"})

    def _authorise(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _RefusedError(401, {"error": "Invalid username or password."})

    def _submission(self, provider: str, route: str, body: Body, *, cut: bool) -> None:
        state, model_id = self.state_of_hosts, MODEL_IDS.get(provider, "")
        routes = {
            "hf-inference": f"models/{model_id}",
            "fal-ai": model_id,
            "replicate": f"v1/models/{model_id}/predictions",
            "together": "v1/images/generations",
            "nscale": "v1/images/generations",
            "wavespeed": f"api/v3/{model_id}",
            "zai-org": "api/paas/v4/async/images/generations",
        }
        if routes.get(provider) != route:
            raise _RefusedError(404, {"error": f"Not found: {provider} has no {route}"})
        _check_fields(body, _FIELDS[provider])
        if body.get("model", model_id) != model_id:
            raise _RefusedError(404, {"error": f"Model {body['model']} not found"})
        if provider == "replicate" and self.headers.get("Prefer") != "wait":
            raise _RefusedError(400, {"detail": "The fake makes images for Prefer: wait only."})
        if provider == "zai-org" and self.headers.get("x-source-channel") != "hugging_face":
            raise _RefusedError(400, {"error": {"code": "1211", "message": "Unknown channel."}})
        state.made.append(body)
        image = state.picture(body, _size(body, state.size))
        if provider == "hf-inference":
            self._send(200, image, f"image/{state.format.lower()}", cut=cut)
            return
        self._json(self._made(provider, body, image), 201 if provider == "replicate" else 200)

    def _made(self, provider: str, body: Body, image: bytes) -> Body:
        """A provider's answer to a submission, with the image or where it will be."""
        state, number = self.state_of_hosts, len(self.state_of_hosts.made)
        if provider in {"together", "nscale"}:
            return {
                "id": str(number),
                "object": "list",
                "data": [{"index": 0, "b64_json": base64.b64encode(image).decode()}],
            }
        name = f"{FILE_HOSTS[provider]}/files/{number}-{len(state.files)}"
        state.files[name] = image
        link = state.link or f"https://{name}"
        if provider == "fal-ai":
            return {
                "images": [{"url": link, "content_type": "image/png"}],
                "timings": {"inference": 0.5},
                "seed": body.get("seed", 1),
                "has_nsfw_concepts": [False],
                "prompt": body["prompt"],
            }
        if provider == "replicate":
            return {
                "id": str(number),
                "model": MODEL_IDS[provider],
                "input": body["input"],
                "output": [link],
                "error": None,
                "status": "succeeded",
            }
        job = f"job-{number}"
        state.jobs[job] = {"link": link, "unready": state.unready}
        if provider == "wavespeed":
            path = f"https://api.wavespeed.ai/api/v3/predictions/{job}/result"
            data = {"id": job, "outputs": [], "urls": {"get": path}, "status": "created"}
            return {"code": 200, "message": "success", "data": {**data, "error": ""}}
        return {"model": body["model"], "id": job, "request_id": job, "task_status": "PROCESSING"}

    def _job(self, provider: str, route: str) -> Body:
        """What became of a submission."""
        pattern = {
            "wavespeed": r"api/v3/predictions/([^/]+)/result",
            "zai-org": r"api/paas/v4/async-result/([^/]+)",
        }.get(provider, "-")
        match = re.fullmatch(pattern, route)
        job = self.state_of_hosts.jobs.get(match[1]) if match else None
        if job is None:
            raise _RefusedError(404, {"error": "No such task."})
        ready = job["unready"] <= 0
        job["unready"] -= 1
        if provider == "zai-org":
            result = {"image_result": [{"url": job["link"]}], "task_status": "SUCCESS"}
            return result if ready else {"task_status": "PROCESSING"}
        status = "completed" if ready else "processing"
        data = {"status": status, "outputs": [job["link"]] if ready else [], "error": ""}
        return {"code": 200, "message": "success", "data": data}

    def _json(self, body: object, status: int = 200, headers: Mapping[str, str] = {}) -> None:  # noqa: B006
        self._send(status, json.dumps(body).encode(), "application/json", headers)

    def _send(
        self,
        status: int,
        body: bytes,
        kind: str,
        headers: Mapping[str, str] = {},  # noqa: B006
        *,
        cut: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut


def _check_fields(body: Body, known: Body) -> None:
    """Refuse a field that the provider does not know, as FastAPI words it."""
    for name, value in body.items():
        if name not in known or not isinstance(value, known[name]):
            detail = [{"loc": ["body", name], "msg": "Extra or wrong input", "type": "wrong"}]
            raise _RefusedError(422, {"detail": detail})
        if isinstance(value, dict):
            _check_fields(value, _INNER_FIELDS[name])
    for needed in ("prompt", "inputs"):
        if needed in known and not body.get(needed):
            raise _RefusedError(422, {"detail": [{"loc": ["body", needed], "msg": "Missing"}]})


def _size(body: Body, usual: tuple[int, int]) -> tuple[int, int]:
    """The size that is asked for, in whichever form."""
    for part in (body, *(body.get(key) for key in ("parameters", "input", "image_size"))):
        if isinstance(part, dict) and {"width", "height"} <= part.keys():
            return part["width"], part["height"]
    if isinstance(size := body.get("size"), str):
        width, height = re.split("[x*]", size)
        return int(width), int(height)
    return usual


def _write_certificates(folder: Path) -> Path:
    """Write `ca.pem`, and the file of the hosts' certificate and key, whose path is returned."""
    now = datetime.datetime.now(datetime.UTC)

    def certificate(
        name: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: str,
        issuer_key: ec.EllipticCurvePrivateKey,
        *extensions: x509.ExtensionType,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False
            )
        )
        for extension in extensions:
            builder = builder.add_extension(extension, isinstance(extension, x509.BasicConstraints))
        return builder.sign(issuer_key, hashes.SHA256())

    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = certificate(
        "Fake CA",
        authority_key,
        "Fake CA",
        authority_key,
        x509.BasicConstraints(ca=True, path_length=None),
    )
    hosts = certificate(
        "Fake hosts",
        key,
        "Fake CA",
        authority_key,
        x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS]),
    )
    (folder / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    file = folder / "hosts.pem"
    file.write_bytes(
        hosts.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return file
