"""Bodies of requests: framing, size, compression, counts before work, and the names of fields."""

import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pydantic
import pytest

from t2i_cli.request_fields import FIELDS
from t2i_cli.server import json_route, request_body
from t2i_cli.server.api.openai import GenerationBody
from t2i_cli.server.options import MAX_BODY_BYTES, ServerLimits, ServerOptions
from t2i_cli.server.schemas import UNKNOWN_FIELD
from t2i_cli.server.vertex_container import VertexContainer
from tests.fakes.serving import serving
from tests.fakes.stub_backend import StubBackend
from tests.test_server_connections import closed, connect, served

VERTEX = "/vertex"
NATIVE, OPENAI, PREDICT = "/t2i/v1/generate", "/v1/images/generations", "/predict"
ROUTES = [NATIVE, OPENAI, PREDICT, VERTEX]
JSON_TYPE = {"Content-Type": "application/json"}
GOOD: dict[str, object] = {
    NATIVE: {"requests": [{"prompt": "a"}]},
    OPENAI: {"prompt": "a"},
    PREDICT: {"prompt": "a"},
    VERTEX: {"instances": [{"prompt": "a"}]},
}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    container = VertexContainer(
        port=8080, health_route="/alive", predict_route=VERTEX, storage_uri=None
    )
    options = ServerOptions(api_key="key", container=container)
    limits = ServerLimits(images=3)
    with (
        serving(StubBackend(), options=options, limits=limits) as server,
        httpx2.Client(
            base_url=server.url, timeout=60, headers={"Authorization": "Bearer key"}
        ) as http,
    ):
        yield http


def error(answer: httpx2.Response, status: int) -> dict[str, Any]:
    """The error that the answer tells, of whichever dialect."""
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()["error"]
    inner: dict[str, Any] = found.get("t2i", {})
    return found | inner


@pytest.mark.parametrize(
    "head",
    [
        "POST /predict HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "GET /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "POST /predict HTTP/1.0\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_a_body_of_two_lengths_is_refused_and_nothing_after_it_is_answered(head: str) -> None:
    body = "0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with served() as (url, _), connect(url) as one:
        sent = f"{head}Host: localhost\r\nContent-Type: application/json\r\n\r\n{body}"
        one.sendall(sent.encode())
        received = b"".join(iter(lambda: one.recv(2**16), b""))
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in received.lower()
    assert b"Transfer-Encoding" in received.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("key", ["kept-by-the-tests", "wrong"])
def test_a_client_that_sends_all_before_it_reads_learns_that_it_is_too_much(
    chunked: bool, key: str
) -> None:
    piece, pieces = b" " * 2**16, 128
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {2**16 * pieces}"
    head = (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\n{length}\r\n\r\n"
    )
    with served() as (url, _), connect(url) as one:
        one.sendall(head.encode())
        for _ in range(pieces):
            one.sendall(b"10000\r\n" + piece + b"\r\n" if chunked else piece)
            time.sleep(0.001)
        if chunked:
            one.sendall(b"0\r\n\r\n")
        answer = one.recv(2**16)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert closed(one)


def test_no_more_than_a_bounded_rest_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "MAX_DRAIN", 2**20)
    monkeypatch.setattr(request_body, "DRAIN_PAUSE", 0.3)
    head = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer kept-by-the-tests\r\nContent-Length: 999999999\r\n\r\n"
    )
    with served() as (url, _):
        with connect(url) as pausing:
            pausing.sendall(head)
            began = time.monotonic()
            assert closed(pausing)
            assert time.monotonic() - began < 20
        with connect(url) as endless:
            endless.sendall(head)
            with pytest.raises(ConnectionError):
                for _ in range(2**10):
                    endless.sendall(b" " * 2**16)


@pytest.mark.parametrize("body", [b"", b" \n"])
@pytest.mark.parametrize("path", ROUTES)
def test_an_empty_body_is_called_empty(client: httpx2.Client, path: str, body: bytes) -> None:
    found = error(client.post(path, content=body, headers=JSON_TYPE), 400)
    assert found["message"].startswith("The body is empty")


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe\x00", b"[" * 5000, b'{"prompt": ' + b"1" * 5000 + b"}"]
)
@pytest.mark.parametrize("path", ROUTES)
def test_what_is_no_json_is_called_that(client: httpx2.Client, path: str, body: bytes) -> None:
    found = error(client.post(path, content=body, headers=JSON_TYPE), 400)
    assert found["message"].startswith("The body is not valid JSON: ")


def test_a_form_is_refused_where_json_is_taken_and_not_found_elsewhere(
    client: httpx2.Client,
) -> None:
    form = {"image": ("a.png", b"png")}
    for path in ("/v1/images/edits", "/v1/images/variations", "/nothing"):
        assert "not found" in error(client.post(path, files=form), 404)["message"].lower()
    assert client.post("/healthz", files=form).status_code == 405
    for path in ROUTES:
        assert client.post(path, files=form).status_code == 415


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", gzip.compress),
        ("X-GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
    ],
)
@pytest.mark.parametrize("path", ROUTES)
def test_compressed_bodies_are_taken(
    client: httpx2.Client, path: str, coding: str, compress: Callable[[bytes], bytes]
) -> None:
    body = compress(json.dumps(GOOD[path]).encode())
    headers = JSON_TYPE | {"Content-Encoding": coding}
    assert client.post(path, content=body, headers=headers).status_code == 200


def test_a_body_that_is_compressed_is_bounded_as_any(client: httpx2.Client) -> None:
    for coding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        headers = JSON_TYPE | {"Content-Encoding": coding}
        bomb = compress(bytes(64 * 2**20))
        found = error(client.post(PREDICT, content=bomb, headers=headers), 413)
        assert "1,048,576 bytes, decompressed" in found["message"]
        exact = compress(json.dumps(GOOD[PREDICT]).encode().ljust(MAX_BODY_BYTES))
        assert client.post(PREDICT, content=exact, headers=headers).status_code == 200


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress"])
def test_other_codings_are_refused_by_name(client: httpx2.Client, coding: str) -> None:
    answer = client.post(PREDICT, content=b"{}", headers=JSON_TYPE | {"Content-Encoding": coding})
    assert repr(coding) in error(answer, 415)["message"]
    assert answer.headers["Accept-Encoding"] == "gzip, deflate"


def test_what_is_not_whole_compressed_data_is_refused(client: httpx2.Client) -> None:
    good = gzip.compress(b'{"prompt": "a"}')
    for body in (b'{"prompt": "a"}', good[:-9], good[:-1], good + good, good + b"x", b""):
        headers = JSON_TYPE | {"Content-Encoding": "gzip"}
        found = error(client.post(PREDICT, content=body, headers=headers), 400)
        assert "not whole, valid gzip data" in found["message"]


@pytest.mark.parametrize(("path", "name"), [(NATIVE, "requests"), (VERTEX, "instances")])
def test_images_are_counted_before_any_is_looked_at(
    client: httpx2.Client, path: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for item in ({}, 0, {"prompt": "a"}):
        found = error(client.post(path, json={name: [item] * 4}), 400)
        assert found["message"] == "A job takes 1 to 3 images, not 4."
        assert found["field"] == name
    monkeypatch.setattr(json_route, "_parse_json", pytest.fail)
    body = b'{"%s":[%s{}]}' % (name.encode(), b"{}," * 340_000)
    found = error(client.post(path, content=body, headers=JSON_TYPE), 400)
    assert found["field"] == name


@pytest.mark.parametrize("path", ROUTES)
def test_a_body_of_hundreds_of_thousands_of_values_is_not_parsed(
    client: httpx2.Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_route, "_parse_json", pytest.fail)
    keys = b",".join(b'"%x":0' % number for number in range(90_000))
    for body in (b"{" + keys + b"}", b'{"prompt":[%s[]]}' % (b"[]," * 300_000), b"[" * 900_000):
        assert (
            "far more values"
            in error(client.post(path, content=body, headers=JSON_TYPE), 400)["message"]
        )
    packed = gzip.compress(b'{"prompt":[%s[]]}' % (b"[]," * 300_000))
    headers = JSON_TYPE | {"Content-Encoding": "gzip"}
    assert (
        "far more values"
        in error(client.post(path, content=packed, headers=headers), 400)["message"]
    )


def test_the_longest_prompts_are_taken_whatever_they_consist_of(client: httpx2.Client) -> None:
    for sign in ",[{":
        one = {"prompt": sign * 5000, "negative_prompt": sign * 5000}
        assert client.post(PREDICT, json=one).status_code == 200
        assert client.post(NATIVE, json={"requests": [one] * 3}).status_code == 200


@pytest.mark.parametrize("path", ROUTES)
def test_a_large_body_is_parsed_off_the_event_loop(
    client: httpx2.Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def seen(data: bytes) -> object:
        threads.append(threading.current_thread().name)
        return json.loads(data)

    monkeypatch.setattr(json_route, "_parse_json", seen)
    text = json.dumps(GOOD[path]).encode()
    for body in (text, text.ljust(json_route.PARSE_ON_LOOP + 1)):
        assert client.post(path, content=body, headers=JSON_TYPE).status_code == 200
    on_loop, off_loop = threads
    assert off_loop != on_loop
    assert off_loop.startswith("asyncio_")


def test_thousands_of_unknown_fields_are_one_error() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        GenerationBody.model_validate({f"x{number}": 0 for number in range(10_000)})
    assert [item["type"] for item in caught.value.errors()] == [UNKNOWN_FIELD]


NAMES = {
    "steps": (3, ["steps", "step", "num_steps", "sampling_steps", "num_inference_steps"], 0),
    "guidance_scale": (2.5, ["guidance_scale", "guidance", "cfg_scale", "cfg"], 101),
    "scheduler": ("ddim", ["scheduler", "sampler", "sampler_name"], "none"),
    "width": (64, ["width"], 0),
    "height": (64, ["height"], 100_000),
    "negative_prompt": ("b", ["negative_prompt"], "\0"),
    "seed": (7, ["seed"], -2),
}


@pytest.mark.parametrize(
    ("field", "name"), [(field, name) for field, (_, names, _) in NAMES.items() for name in names]
)
def test_openais_dialect_takes_the_usual_names_and_errors_use_the_clients(
    client: httpx2.Client, field: str, name: str
) -> None:
    value, _, wrong = NAMES[field]
    answer = client.post(OPENAI, json={"prompt": "a", name: value})
    assert answer.json()["data"][0]["t2i"]["request"][field] == value
    assert error(client.post(OPENAI, json={"prompt": "a", name: wrong}), 400)["param"] == name
    wrong_type = client.post(OPENAI, json={"prompt": "a", name: ["x"]})
    assert error(wrong_type, 400)["param"] == name


def test_no_common_name_is_of_two_fields() -> None:
    names = [name for name, known in FIELDS.items()]
    aliases = [alias for known in FIELDS.values() for alias in known.aliases]
    assert len({*names, *aliases}) == len(names) + len(aliases)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"size": "100x100"}, "size"),
        ({"width": 100}, "width"),
        ({"height": 100, "width": 64}, "height"),
        ({"size": "64x64", "width": 128}, "width"),
        ({"steps": 3, "num_inference_steps": 4}, "num_inference_steps"),
        ({"cfg_scale": 3, "guidance": 4}, "cfg_scale"),
        ({"steps": 999}, "steps"),
        ({"width": 8192, "height": 8192}, "width"),
        ({"n": 4}, "n"),
        ({"seed": 2**32 - 1, "n": 2}, "seed"),
    ],
)
def test_param_is_the_field_that_was_sent(
    client: httpx2.Client, body: dict[str, object], param: str
) -> None:
    assert error(client.post(OPENAI, json={"prompt": "a"} | body), 400)["param"] == param


def test_equal_values_by_two_names_are_taken(client: httpx2.Client) -> None:
    body = {"prompt": "a", "size": "64x128", "width": 64, "steps": 3, "num_inference_steps": 3}
    made = client.post(OPENAI, json=body).json()["data"][0]["t2i"]["request"]
    assert (made["width"], made["height"], made["steps"]) == (64, 128, 3)


def test_vertex_errors_name_googles_fields_where_those_were_sent(client: httpx2.Client) -> None:
    for name in ("steps", "num_inference_steps"):
        body = {"instances": [{"prompt": "a", name: 0}]}
        assert error(client.post(VERTEX, json=body), 400)["field"] == name
    assert error(client.post(VERTEX, json={"instances": [{"text": ""}]}), 400)["field"] == "text"


def test_a_half_closed_and_a_pipelining_client_harm_nobody() -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with served() as (url, _):
        with connect(url) as pipelined:
            pipelined.sendall(ask * 50 + ask.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            received = b"".join(iter(lambda: pipelined.recv(2**16), b""))
            assert received.count(b"HTTP/1.1 200 ") == 51
        with connect(url) as half:
            half.sendall(ask[:20])
            half.shutdown(socket.SHUT_WR)
            assert closed(half)
        assert httpx2.get(f"{url}/healthz").status_code == 200


def _body_with(route: str, extras: object) -> object:
    request = {"prompt": "a", "extras": extras}
    return {NATIVE: {"requests": [request]}, VERTEX: {"instances": [request]}}.get(route, request)


@pytest.mark.parametrize("route", ROUTES)
def test_every_body_takes_extras_and_bounds_them(client: httpx2.Client, route: str) -> None:
    answer = client.post(route, json=_body_with(route, {"clip_skip": 1, "sigmas": [1, 0.5]}))
    assert answer.status_code == 200, answer.text
    for wrong in ({"a": {"b": 1}}, {"a": [[[1]]]}, {"a": "x" * 5001}, 7, {"a b": 1}):
        found = error(client.post(route, json=_body_with(route, wrong)), 400)
        assert "extras" in str(found.get("param") or found.get("field")), found
