"""Starts Ray or connects to it, again where that was too slow or stumbled, within a limit."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event as Flag
from typing import Any

from t2i_cli.errors import RemoteError

CONNECT_SECONDS = 180.0
"""Seconds within which it is tried again."""
MAX_CONNECTION_ATTEMPTS = 6
"""Attempts, for what fails at once each time."""
_TOO_SLOW = re.compile("timed out during startup|client connection timeout")
"""What Ray says of a start or a proxy that took too long, in exceptions of any class."""
_PAUSE = 2.0
"""Seconds between two attempts."""


def connect_within_limit(ray: Any, connect: Callable[[], object], closing: Flag) -> None:  # noqa: ANN401 - ray's module
    """Call `connect` until it succeeds, `closing` is set, or the limits are reached.

    For each client Ray's proxy starts a process, which may end at once (it forks beside running
    threads of gRPC), and which it waits 30 seconds for, as Ray does for its own start on this
    machine; another attempt is the way out. Raises what the last attempt raised.
    """
    end = time.monotonic() + CONNECT_SECONDS
    for attempt in range(1, MAX_CONNECTION_ATTEMPTS + 1):
        try:
            connect()
            return
        except Exception as error:
            with suppress(Exception):
                ray.shutdown()
            over = attempt == MAX_CONNECTION_ATTEMPTS or time.monotonic() + _PAUSE >= end
            if over or not may_succeed_later(error) or closing.wait(_PAUSE):
                raise


def may_succeed_later(error: Exception) -> bool:
    """Whether another attempt may succeed after what Ray raised."""
    import grpc

    if isinstance(error, grpc.RpcError):
        code = error.code() if isinstance(error, grpc.Call) else None
        return code not in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
    return isinstance(error, ConnectionAbortedError) or _TOO_SLOW.search(str(error)) is not None


def proxy_error(address: str, reason: str) -> RemoteError:
    """The error of a proxy that let nobody in, however often it was asked."""
    return RemoteError(
        f"The Ray cluster at {address} lets nobody in: {reason}.",
        hint="Its proxy waits 30 s for the process that it starts for each client; "
        "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S=120 before `ray start --head` has it wait "
        "longer. On a node of the cluster, --address auto needs no proxy.",
    )
