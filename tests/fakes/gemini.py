"""Google's image models on loopback: generateContent of Vertex AI, as strict as its types.

Every body is parsed into `GenerateContentRequest` of google-cloud-aiplatform, unknown fields
refused; on top, by Google's pages of the models: which location serves which model, and which
aspect ratios and sizes it takes. It fails on demand.
"""

import base64
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from tests.fakes.google import refusal
from tests.fakes.oauth import FakeOAuth

Body = dict[str, Any]
PROJECT = "gallery"
TOKEN = "ya29.secret"  # noqa: S105 - what the fake issues

_GEMINI_3 = """
1:1 1024x1024 2:3 848x1264 3:2 1264x848 3:4 896x1200 4:3 1200x896 4:5 928x1152 5:4 1152x928
9:16 768x1376 16:9 1376x768 21:9 1584x672
"""
_STRIPS = "1:4 512x2048 4:1 2048x512 1:8 384x3072 8:1 3072x384"
_GEMINI_2_5 = """
1:1 1024x1024 2:3 832x1248 3:2 1248x832 3:4 864x1184 4:3 1184x864 4:5 896x1152 5:4 1152x896
9:16 768x1344 16:9 1344x768 21:9 1536x672
"""
MODELS = {
    "gemini-3.1-flash-image": (_GEMINI_3 + _STRIPS, ("512", "1K", "2K", "4K")),
    "gemini-3-pro-image": (_GEMINI_3, ("1K", "2K", "4K")),
    "gemini-2.5-flash-image": (_GEMINI_2_5, ()),
    # One that no table of t2i's has.
    "gemini-9-future-image": (_GEMINI_3, ("1K", "8K")),
}
"""The sizes in pixels at 1K by aspect ratio, and the image sizes, of each model that is served."""
TOKENS = {"512": 747, "1K": 1120, "2K": 1680, "4K": 2520, "8K": 9000}
_SCALES = {"512": 0.5, "1K": 1, "2K": 2, "4K": 4, "8K": 8}
_METHOD = re.compile(
    r"/(?P<version>[^/]+)/projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)"
    r"/publishers/google/models/(?P<model>[^/:]+):generateContent"
)


@dataclass(kw_only=True)
class Fault:
    """One way to fail, for `times` requests."""

    status: int = 0
    body: object = None
    page: bytes | None = None
    """The whole body in plain text, in `status`."""
    headers: dict[str, str] = field(default_factory=dict)
    answer: object = None
    """The whole JSON answer, status 200."""
    raw: bytes | None = None
    """The whole body, status 200."""
    stall: float = 0.0
    """Seconds without an answer; the connection is then closed."""
    cut: bool = False
    """Make the image, and close the connection in the middle of the answer."""
    times: int = 1


def quota(times: int = 1, after: str | None = None) -> Fault:
    """429 in Google's form."""
    message = "Resource exhausted. Please try again later."
    headers = {} if after is None else {"Retry-After": after}
    body = refusal(429, "RESOURCE_EXHAUSTED", message)
    return Fault(status=429, body=body, headers=headers, times=times)


def overloaded(times: int = 1) -> Fault:
    """503 in Google's form."""
    message = "The model is overloaded. Please try again later."
    return Fault(status=503, body=refusal(503, "UNAVAILABLE", message), times=times)


def stopped(reason: str, *parts: Body, **candidate: object) -> Fault:
    """An answer without an image, for a reason."""
    content = {"role": "model", "parts": list(parts)} if parts else {}
    one = {"finishReason": reason, "content": content} | candidate
    return Fault(answer={"candidates": [one], "modelVersion": "gemini", "responseId": "r"})


def blocked(reason: str, message: str = "") -> Fault:
    """An answer that refuses the prompt."""
    feedback = {"blockReason": reason} | ({"blockReasonMessage": message} if message else {})
    return Fault(answer={"promptFeedback": feedback, "usageMetadata": {"promptTokenCount": 4}})


def inline(data: bytes | str, kind: str = "image/png") -> Body:
    """A part that holds a file."""
    text = data if isinstance(data, str) else base64.b64encode(data).decode()
    return {"inlineData": {"mimeType": kind, "data": text}}


def drawn(size: tuple[int, int], format: str = "PNG", **options: object) -> bytes:
    """A file of a picture with a gradient, so that JPEG's losses show."""
    picture = Image.radial_gradient("L").resize(size)
    image = Image.merge(
        "RGB", (picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), picture)
    )
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


class Refused(Exception):
    """An error to answer with."""

    def __init__(self, status: int, name: str, message: str) -> None:
        super().__init__(message)
        self.status, self.body = status, refusal(status, name, message)


@dataclass
class FakeGemini:
    """The state: how it fails, what it was asked, and which files it sent."""

    url: str = ""
    key: Path | None = None
    faults: list[Fault] = field(default_factory=list)
    fault: Callable[[Body], Fault | None] = lambda body: None
    """Called for every request that no entry of `faults` is for."""
    pause: float = 0.0
    asked: list[Body] = field(default_factory=list)
    """Every body that reached a model, in order, refused ones included."""
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    regions: frozenset[str] = frozenset({"global"})
    most_in_flight: int = 0
    in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a t2i that calls it."""
        return {
            "T2I_BACKEND": "gemini",
            "T2I_VERTEX_API_ENDPOINT": self.url,
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.key),
            "NO_GCE_CHECK": "true",
        }

    def next_fault(self, body: Body) -> Fault | None:
        """The fault of this request; one of `faults` is used up by it."""
        for fault in self.faults:
            if fault.times > 0:
                fault.times -= 1
                return fault
        return self.fault(body)

    def image_of(self, path: str, body: Body) -> tuple[bytes, str, int]:
        """The file that a request makes, its type, and its tokens. Raises Refused."""
        where = _METHOD.fullmatch(path)
        if where is None or where["version"] != "v1":
            raise Refused(404, "NOT_FOUND", "Not found.")
        name = path.removeprefix("/v1/").removesuffix(":generateContent")
        served = where["location"] in self.regions and where["project"] == PROJECT
        if not served or where["model"] not in MODELS:
            raise Refused(
                404,
                "NOT_FOUND",
                f"Publisher Model `{name}` was not found or your project does not have access to "
                "it. Please ensure you are using a valid model version.",
            )
        _check_type(body | {"model": name})
        return _picture(where["model"], body)


def _check_type(body: Body) -> None:
    """Raise Refused for a body that is no GenerateContentRequest."""
    try:
        _json_format().ParseDict(body, _types().GenerateContentRequest()._pb)
    except _json_format().ParseError as error:
        raise Refused(400, "INVALID_ARGUMENT", f"Invalid JSON payload received. {error}") from None


@cache
def _types() -> Any:  # noqa: ANN401 - a module
    from google.cloud.aiplatform_v1.types import prediction_service

    return prediction_service


@cache
def _json_format() -> Any:  # noqa: ANN401 - a module, which has no types
    return import_module("google.protobuf.json_format")


def _picture(model: str, body: Body) -> tuple[bytes, str, int]:
    contents = body.get("contents") or []
    parts = [part for one in contents for part in one.get("parts", [])]
    if not any(part.get("text", "").strip() for part in parts):
        raise _invalid("it must have a text parameter")
    if any(one.get("role") not in {"user", "model"} for one in contents):
        raise _invalid("a valid role is user or model")
    config = body.get("generationConfig", {})
    if "IMAGE" not in config.get("responseModalities", []):
        raise _invalid(f"{model} has to be asked for the modality IMAGE here")
    asked = config.get("imageConfig", {})
    table, image_sizes = MODELS[model]
    words = table.split()
    ratios = dict(zip(words[::2], words[1::2], strict=True))
    ratio = asked.get("aspectRatio", "1:1")
    if ratio not in ratios:
        raise _invalid(f"aspectRatio {ratio} is not supported")
    if "imageSize" in asked and asked["imageSize"] not in image_sizes:
        raise _invalid(f"imageSize {asked['imageSize']} is not supported")
    options = asked.get("imageOutputOptions", {})
    kind = options.get("mimeType", "image/png")
    if kind not in {"image/png", "image/jpeg"}:
        raise _invalid(f"mimeType {kind} is not supported")
    if "compressionQuality" in options and kind != "image/jpeg":
        raise _invalid("compressionQuality is for image/jpeg only")
    image_size = asked.get("imageSize", "1K")
    width, height = map(int, ratios[ratio].split("x"))
    scale = _SCALES[image_size]
    size = int(width * scale), int(height * scale)
    format = kind.removeprefix("image/").upper()
    return drawn(size, format), kind, TOKENS[image_size]


def _invalid(reason: str) -> Refused:
    return Refused(400, "INVALID_ARGUMENT", f"Unable to submit request because {reason}.")


def image_answer(file: bytes, kind: str, tokens: int, number: int) -> Body:
    """The answer with an image, which is a GenerateContentResponse."""
    answer: Body = {
        "candidates": [
            {
                "content": {
                    "role": "model",
                    "parts": [{"text": "Here it is."}, inline(file, kind)],
                },
                "finishReason": "STOP",
            }
        ],
        "usageMetadata": {
            "promptTokenCount": 6,
            "candidatesTokenCount": tokens,
            "totalTokenCount": tokens + 6,
            "trafficType": "ON_DEMAND",
            "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": tokens}],
        },
        "modelVersion": "gemini-image-2026",
        "createTime": "2026-11-26T12:00:00Z",
        "responseId": f"answer-{number}",
    }
    _json_format().ParseDict(answer, _types().GenerateContentResponse()._pb)
    return answer


@contextmanager
def running_gemini(folder: Path) -> Iterator[FakeGemini]:
    """The server on a free port until the block ends; a key file for it lies in the folder."""
    state = FakeGemini()

    class Handler(_Handler):
        gemini = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
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


class _Handler(BaseHTTPRequestHandler):
    gemini: FakeGemini
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/token":
            self._json({"access_token": TOKEN, "expires_in": 3600})
            return
        state = self.gemini
        body = json.loads(data)
        with state.lock:
            state.asked.append(body)
            state.paths.append(self.path)
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            number = len(state.asked)
            fault = state.next_fault(body) or Fault()
            state.in_flight += 1
            state.most_in_flight = max(state.most_in_flight, state.in_flight)
        try:
            self._answer(body, fault, number)
        except ConnectionError:
            self.close_connection = True  # the client went away, which some tests want
        finally:
            with state.lock:
                state.in_flight -= 1

    def _answer(self, body: Body, fault: Fault, number: int) -> None:
        self.gemini.closing.wait(fault.stall or self.gemini.pause)
        if fault.stall:
            self.close_connection = True
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._json(refusal(401, "UNAUTHENTICATED", "Request is missing a credential."), 401)
        elif fault.page is not None:
            self._send(fault.status, fault.page, {"Content-Type": "text/plain"} | fault.headers)
        elif fault.status:
            self._json(fault.body, fault.status, fault.headers)
        elif fault.raw is not None:
            self._send(200, fault.raw)
        elif fault.answer is not None:
            self._json(fault.answer)
        else:
            self._image(body, number, cut=fault.cut)

    def _image(self, body: Body, number: int, *, cut: bool) -> None:
        try:
            file, kind, tokens = self.gemini.image_of(self.path, body)
        except Refused as refused:
            self._json(refused.body, refused.status)
            return
        with self.gemini.lock:
            self.gemini.sent.append(file)
        answer = json.dumps(image_answer(file, kind, tokens, number)).encode()
        self._send(200, answer, cut=cut)

    def _json(self, body: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), headers)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        cut: bool = False,
    ) -> None:
        self.send_response(status)
        found = {"Content-Type": "application/json"} | (headers or {})
        for name, value in (found | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True
