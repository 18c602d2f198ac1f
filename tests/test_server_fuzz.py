"""Malformed requests by the thousand: every one is answered, and none with a server's error."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import BaseSchema, GenerationMode, checks
from schemathesis.core.result import Ok

from t2i_cli.server.app import create_app
from t2i_cli.server.engine import Engine
from t2i_cli.server.options import ServerOptions
from t2i_cli.server.vertex_container import VertexContainer
from tests.fakes.stub_backend import StubBackend

VALID: dict[str, dict[str, Any]] = {
    "/predict": {"prompt": "a star", "seed": 1, "steps": 3, "format": "webp"},
    "/v1/images/generations": {"prompt": "a star", "n": 2, "size": "64x64", "quality": "auto"},
    "/vertex": {"instances": [{"prompt": "a star", "seed": "1"}], "parameters": {"steps": 3.0}},
    "/t2i/v1/generate": {"requests": [{"prompt": "a star", "width": 64}], "previews": 1},
}
"""The routes that take a body, and one that each of them takes."""
JSON_TYPE = {"Content-Type": "application/json"}
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
"""Not those of what is accepted: a document cannot tell all that a model does not take."""

ROUTES = pytest.mark.parametrize("route", VALID)

Send = Callable[..., httpx2.Response]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
"""Anything that JSON can hold, and the numbers that only Python's JSON can."""


@pytest.fixture(scope="module")
def send() -> Iterator[Send]:
    """Asks the application in this process; what it fails with comes out here."""
    variables = {"AIP_HTTP_PORT": "8080", "AIP_PREDICT_ROUTE": "/vertex"}
    with asyncio.Runner() as runner:

        async def start() -> httpx2.AsyncClient:
            await lifespan.__aenter__()
            await engine.wait_described()
            transport = httpx2.ASGITransport(app)
            headers = {"Authorization": "Bearer key"}
            return httpx2.AsyncClient(
                transport=transport, base_url="http://localhost", headers=headers
            )

        async def stop() -> None:
            await client.aclose()
            await lifespan.__aexit__(None, None, None)

        def ask(method: str, url: str, **request: Any) -> httpx2.Response:  # noqa: ANN401
            return runner.run(client.request(method, url, **request))

        engine = Engine(StubBackend(side=1), "postcard")
        options = ServerOptions(
            container=VertexContainer.from_environment(variables), api_key="key"
        )
        app = create_app(engine, options)
        lifespan = app.router.lifespan_context(app)
        client = runner.run(start())
        yield ask
        runner.run(stop())


@pytest.fixture(scope="module")
def schema(send: Send) -> BaseSchema:
    """The OpenAPI document that the server hands out."""
    return schemathesis.openapi.from_dict(send("GET", "/openapi.json").json())


def answered(response: httpx2.Response) -> None:
    """It is an image or images, or an error of the client's in JSON that any reader takes."""
    assert response.status_code in {200, 400, 404, 413, 415}, response.text
    if response.status_code != 200:
        error = json.loads(response.content.decode("ascii"), parse_constant=pytest.fail)["error"]
        assert error["message"]


@ROUTES
def test_a_valid_body_is_taken(send: Send, route: str) -> None:
    assert send("POST", route, json=VALID[route]).status_code == 200


@ROUTES
def test_bytes(send: Send, route: str) -> None:
    @given(st.binary(max_size=200))
    def check(content: bytes) -> None:
        answered(send("POST", route, content=content, headers=JSON_TYPE))

    check()


@ROUTES
def test_json_that_is_broken(send: Send, route: str) -> None:
    """A good body with a piece cut out and another put in."""
    text = json.dumps(VALID[route])
    places = st.integers(0, len(text))

    @given(places, places, st.text(st.characters(codec="utf-8"), max_size=5))
    def check(start: int, end: int, piece: str) -> None:
        content = (text[:start] + piece + text[end:]).encode()
        answered(send("POST", route, content=content, headers=JSON_TYPE))

    check()


@ROUTES
def test_any_json(send: Send, route: str) -> None:
    @given(values)
    def check(body: object) -> None:
        answered(send("POST", route, content=json.dumps(body), headers=JSON_TYPE))

    check()


@ROUTES
def test_fields_with_any_value(send: Send, route: str, schema: BaseSchema) -> None:
    """A good body in which some field, wherever it lies, has a value that it should not have."""
    names = st.sampled_from(sorted(fields(schema.raw_schema, route))) | st.text()

    @given(st.dictionaries(names, values, min_size=1, max_size=3), st.booleans())
    def check(wrong: dict[str, object], inside: bool) -> None:
        body = dict(VALID[route])
        inner = next((name for name in ("instances", "requests") if name in body), None)
        if inside and inner:
            body[inner] = [body[inner][0] | wrong]
        else:
            body |= wrong
        answered(send("POST", route, content=json.dumps(body), headers=JSON_TYPE))

    check()


@pytest.mark.parametrize("mode", GenerationMode)
def test_the_document_is_kept_to(send: Send, schema: BaseSchema, mode: GenerationMode) -> None:
    """Whatever the document allows, and much that it does not, is answered as it says."""
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # there is nothing to get wrong: a name in a path may be any text

        @given(operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case[Any]) -> None:
            request = case.as_transport_kwargs(base_url="http://localhost")
            # These are requests' words, of which httpx2 warns.
            del request["cookies"]
            request["content"] = request.pop("data", None)
            case.validate_response(send(**request), checks=CHECKS)

        check()


def fields(document: dict[str, Any], route: str) -> set[str]:
    """The names of all fields of a route's body."""
    found: set[str] = set()

    def visit(part: dict[str, Any] | list[Any]) -> None:
        if isinstance(part, dict):
            found.update(part.get("properties", {}))
            if reference := part.get("$ref"):
                visit(document["components"]["schemas"][reference.rpartition("/")[2]])
        for inner in part.values() if isinstance(part, dict) else part:
            if isinstance(inner, dict | list):
                visit(inner)

    visit(document["paths"][route]["post"]["requestBody"])
    return found
