"""The real server over any backend, on a free port: `with serving(StubBackend()) as server:`.

As a process, `python -m tests.fakes.serving` serves a stub backend with a queue of 16 and prints
its address; PAUSE seconds an image are in its environment, and T2I_API_KEY where it has a key.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from t2i_cli.backend import Backend
from t2i_cli.events import OnEvent
from t2i_cli.server.app import create_app
from t2i_cli.server.engine import Engine
from t2i_cli.server.listeners import listen_tcp
from t2i_cli.server.options import ServerLimits, ServerOptions
from t2i_cli.server.runner import run_server
from tests.fakes.stub_backend import StubBackend


@dataclass(frozen=True)
class Running:
    """A server, which can serve unless that was not waited for."""

    url: str
    engine: Engine
    backend: Backend


@contextmanager
def serving(
    backend: Backend,
    *,
    model: str | Callable[[OnEvent], str] = "postcard",
    options: ServerOptions | None = None,
    limits: ServerLimits | None = None,
    ready: bool = True,
) -> Iterator[Running]:
    """The server in a thread of this process, until the block ends; from when it is `ready`."""
    engine = Engine(backend, model, limits)
    app = create_app(engine, options or ServerOptions())
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    listener = listen_tcp("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not (server.started and (engine.ready or not ready)):
            assert thread.is_alive()
            time.sleep(0.01)
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", engine, backend)
    finally:
        server.should_exit = True
        thread.join()


def main() -> None:
    """Serve until a signal comes."""
    stub = StubBackend(pause=float(os.environ.get("PAUSE", "0")), side=128)
    engine = Engine(stub, "postcard", ServerLimits(queue=16))
    app = create_app(engine, ServerOptions(api_key=os.environ.get("T2I_API_KEY")))
    listener = listen_tcp("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    run_server(app, engine, listener, on_ready=lambda: print(address, flush=True))  # noqa: T201


if __name__ == "__main__":
    main()
