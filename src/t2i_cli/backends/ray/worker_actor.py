"""The actor class that Ray starts on its nodes: a process with one backend."""

from collections.abc import Sequence
from typing import Any

FETCHING = "fetching"
"""The name of the threads in which a worker is asked for what it has to tell."""


def make_actor_class() -> type:
    """The class of a worker's actor.

    It is defined inside, so that Ray sends its code: what it is asked first, its versions, is
    answered without t2i, too.
    """
    from ray import method

    class T2IWorker:
        """Runs passes of requests; `start` makes its backend."""

        def versions(self, packages: Sequence[str], find: Any) -> dict[str, Any]:  # noqa: ANN401
            import socket

            from ray import get_runtime_context

            return {
                "versions": find(packages),
                "node": socket.gethostname(),
                "node_id": get_runtime_context().get_node_id(),
            }

        def start(self, config: bytes) -> None:
            import pickle

            from t2i_cli.backends.ray.pass_runner import PassRunner

            self.runner = PassRunner(pickle.loads(config))  # noqa: S301 - of the driver

        def submit(self, one: Any) -> None:  # noqa: ANN401
            self.runner.submit(one)

        @method(concurrency_group=FETCHING)  # type: ignore[untyped-decorator]
        def fetch(self, seconds: float, linger: float) -> list[Any]:
            return self.runner.fetch(seconds, linger)

        def cancel(self, numbers: Sequence[int]) -> None:
            self.runner.cancel(numbers)

        def withdraw(self, number: int) -> None:
            self.runner.withdraw(number)

        def finish_soon(self) -> None:
            self.runner.finish_soon()

    return T2IWorker
