"""The FastAPI application: routers of the dialects and the page, security, error handling."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from t2i_cli import __version__
from t2i_cli.errors import InputError, InternalError, T2IError
from t2i_cli.server import docs, health, page, responses
from t2i_cli.server.api import openai, predict, t2i, vertex
from t2i_cli.server.connections import ConnectionTable, connection_limit
from t2i_cli.server.engine import Engine
from t2i_cli.server.options import ServerOptions
from t2i_cli.server.private_paths import PrivatePaths
from t2i_cli.server.security import ApiKey, Render, SecurityMiddleware

PROBES = ("/healthz", "/readyz")
"""Paths of health probes, which reveal only a state."""
OPEN_PATHS = ("/", "/static/", *PROBES)
"""Paths that need no API key; "/static/" includes all below it."""
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["message", "code"]}},
}


def create_app(engine: Engine, options: ServerOptions) -> FastAPI:
    """The application; its lifespan starts the engine in a task, and stops it.

    `app.state.starting` is the task that loads the model, `connections` the table of connections,
    `api_key` the key that requests need.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.starting = asyncio.create_task(engine.start())
        yield
        await engine.stop(grace=0)
        app.state.starting.cancel()
        with suppress(asyncio.CancelledError, T2IError):
            await app.state.starting

    render = _error_renderer(options)
    api_key = ApiKey(options.api_key)
    connections = ConnectionTable(connection_limit(engine.limits.queue))
    app = FastAPI(
        title="t2i",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={
            "default": {
                "description": "What went wrong, in the dialect's own words.",
                "content": {"application/json": {"schema": _ERROR}},
            }
        },
        middleware=_middleware(options, api_key, render),
    )
    app.state.connections = connections
    app.state.api_key = api_key
    if options.container:
        # First: its routes are configurable and take precedence over others of the same path.
        app.include_router(vertex.vertex_router(engine, options))
    app.include_router(predict.predict_router(engine, options))
    app.include_router(openai.openai_router(engine, options))
    app.include_router(t2i.t2i_router(engine, options))
    app.include_router(health.health_router(engine, connections))
    app.include_router(docs.docs_router())
    app.include_router(page.page_router())
    _handle_errors(app, render, engine.hidden)
    return app


def _middleware(options: ServerOptions, api_key: ApiKey, render: Render) -> list[Middleware]:
    container = options.container
    trusted = {container.health_route, container.predict_route} if container else set()
    security = Middleware(
        SecurityMiddleware,
        options=options,
        api_key=api_key,
        open_paths=OPEN_PATHS,
        probes=PROBES,
        trusted=trusted,
        render=render,
    )
    if not options.cors_origins:
        return [security]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=options.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
    )
    return [cors, security]


def _error_renderer(options: ServerOptions) -> Render:
    def render(path: str, error: T2IError, status: int) -> Response:
        """The error response in the dialect of the path."""
        if options.container and path == options.container.predict_route:
            body = vertex.google_error(error, status)
        elif path.startswith("/v1/"):
            body = openai.openai_error(error, status)
        else:
            body = {"error": error.to_json()}
        return responses.json_response(body, status, responses.error_headers(error))

    return render


def _handle_errors(app: FastAPI, render: Render, hidden: PrivatePaths) -> None:
    """Turn every exception of a route into an error response, without a traceback."""

    @app.exception_handler(T2IError)
    async def failed(request: Request, error: T2IError) -> Response:
        return render(request.url.path, hidden.error(error), responses.status_code(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return render(request.url.path, responses.validation_error(error.errors()), 400)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}."
        response = render(request.url.path, InputError(message), error.status_code)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        # Starlette raises it again, so that uvicorn logs it.
        public = InternalError("The server met a bug; its log has the details.")
        return render(request.url.path, public, 500)
