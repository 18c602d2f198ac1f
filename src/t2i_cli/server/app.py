"""The application: every dialect and the page over one engine, behind the guard."""

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
from t2i_cli.server.engine import Engine
from t2i_cli.server.options import ServerOptions
from t2i_cli.server.security import Render, SecurityMiddleware

PROBES = ("/healthz", "/readyz")
"""What tells no more than a state."""
OPEN_PATHS = ("/", "/static/", *PROBES)
"""What needs no key."""
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["message", "code"]}},
}


def create_app(engine: Engine, options: ServerOptions) -> FastAPI:
    """The application; its lifespan starts the engine, without waiting, and stops it.

    `app.state.starting` is the task that loads the model.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.starting = asyncio.create_task(engine.start())
        yield
        await engine.stop(grace=0)
        app.state.starting.cancel()
        with suppress(asyncio.CancelledError, T2IError):
            await app.state.starting

    render = _render(options)
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
        middleware=_middleware(options, render),
    )
    if options.container:
        # Its routes may have the names of others, which then are its own.
        app.include_router(vertex.vertex_router(engine, options))
    app.include_router(predict.predict_router(engine, options))
    app.include_router(openai.openai_router(engine, options))
    app.include_router(t2i.t2i_router(engine, options))
    app.include_router(health.health_router(engine))
    app.include_router(docs.docs_router())
    app.include_router(page.page_router())
    _handle_errors(app, render)
    return app


def _middleware(options: ServerOptions, render: Render) -> list[Middleware]:
    container = options.container
    trusted = {container.health_route, container.predict_route} if container else set()
    guard = Middleware(
        SecurityMiddleware,
        options=options,
        open_paths=OPEN_PATHS,
        probes=PROBES,
        trusted=trusted,
        render=render,
    )
    if not options.cors_origins:
        return [guard]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=options.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
    )
    return [cors, guard]


def _render(options: ServerOptions) -> Render:
    def render(path: str, error: T2IError, status: int) -> Response:
        """An error in the dialect of the path."""
        if options.container and path == options.container.predict_route:
            body = vertex.google_error(error, status)
        elif path.startswith("/v1/"):
            body = openai.openai_error(error, status)
        else:
            body = {"error": error.to_json()}
        return responses.json_response(body, status, responses.error_headers(error))

    return render


def _handle_errors(app: FastAPI, render: Render) -> None:
    """Answer whatever a route raises in its dialect, and without a traceback."""

    @app.exception_handler(T2IError)
    async def failed(request: Request, error: T2IError) -> Response:
        return render(request.url.path, error, responses.status_code(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return render(request.url.path, responses.validation_error(error.errors()), 400)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}."
        answer = render(request.url.path, InputError(message), error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        # Starlette raises it again, for the log.
        told = InternalError("The server met a bug; its log has the details.")
        return render(request.url.path, told, 500)
