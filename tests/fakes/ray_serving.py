"""Serves stub workers on the Ray cluster at CLUSTER, as `t2i serve --backend ray` serves real ones.

`python -m tests.fakes.ray_serving` prints the server's address.
"""

import os
import sys

from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.backends.ray import RayBackend, RayOptions
from t2i_cli.server.app import create_app
from t2i_cli.server.engine import Engine
from t2i_cli.server.listeners import listen_tcp
from t2i_cli.server.options import ServerOptions
from t2i_cli.server.runner import run_server
from tests.fakes.ray_workers import make_stub


def main() -> None:
    """Serve until a signal comes."""
    options = RayOptions(local=LocalOptions(batch_size=1), address=os.environ["CLUSTER"])
    engine = Engine(RayBackend(options, make_stub), "postcard")
    app = create_app(engine, ServerOptions())
    listener = listen_tcp("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    run_server(app, engine, listener, on_ready=lambda: print(address, flush=True))  # noqa: T201


if __name__ == "__main__":
    main()
    # As the command itself ends: without waiting for Ray's threads.
    sys.stdout.flush()
    os._exit(0)
