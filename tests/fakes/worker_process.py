"""A worker with a stub backend that prompts control, and `t2i` using such workers.

`python -m tests.fakes.worker_process generate …` is `t2i`; `tests.fakes.warm_worker` is the
worker's process.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event as Flag

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.errors import InputError, T2IError
from t2i_cli.events import OnEvent, Step
from t2i_cli.request import ResolvedRequest
from tests.fakes.stub_backend import StubBackend, painted

WORKER = "tests.fakes.warm_worker"


@dataclass
class Actor(StubBackend):
    """Prompt "slow …" runs until it is cancelled, "fail CODE" fails so, "bug" raises RuntimeError.

    The scheduler `heun` is refused by `check`.
    """

    def check(self, request: ResolvedRequest) -> None:
        """Refuse a scheduler."""
        if request.scheduler == "heun":
            raise unfit()

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Do what the prompt of each request says, one after another."""
        self.steps = True
        for index, request in enumerate(requests):
            if cancel.is_set():
                return
            word, _, rest = request.prompt.partition(" ")
            if word == "bug":
                raise RuntimeError("a bug")
            step = 0
            while word == "slow" and not cancel.is_set():
                step += 1
                on_event(Step(indices=(index,), step=min(step, 999), steps=1000))
                time.sleep(0.05)
            self._denoise((index,), on_event)
            self.made.append(request)
            if word == "fail":
                yield Failure(index=index, request=request, error=failure(rest))
            else:
                yield painted(index, request, self.side)


def unfit() -> InputError:
    """The error of what is refused."""
    return InputError("It does not fit.", hint="Make it fit.", field="scheduler")


def failure(code: str) -> T2IError:
    """The error of that code."""
    kind = next(kind for kind in T2IError.__subclasses__() if kind.code == code)
    return kind(f"It failed by {code}.", hint="Try less.")


if __name__ == "__main__":
    from t2i_cli.backends import factory
    from t2i_cli.cli import main
    from t2i_cli.worker import spawn

    spawn.DAEMON_MODULE = WORKER
    factory.create_local_backend = lambda options: StubBackend(steps=True)
    main.main()
