"""Backends that a test has the workers of a Ray cluster make: constant images, and faults.

A prompt of several words tells what happens to its image; of those with a file, the file is given
last: `die-once FILE`, `die`, `hang-once FILE`, `hold FILE` (until that exists), `bug`, `refuse`,
`note`.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event as Flag
from typing import Any

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.local import LocalBackend
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.errors import ModelError, T2IError
from t2i_cli.events import Notice, OnEvent, Step
from t2i_cli.request import ResolvedRequest
from tests.fakes import gpu
from tests.fakes.stub_backend import StubBackend, painted


def _first_time(path: Path) -> bool:
    if path.exists():
        return False
    path.write_text(str(os.getpid()))
    return True


def _refuse(request: ResolvedRequest) -> T2IError | None:
    word, _, path = request.prompt.partition(" ")
    if word == "die" or (word == "die-once" and _first_time(Path(path))):
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "bug":
        raise RuntimeError("the backend broke")
    return ModelError("It is refused.") if word == "refuse" else None


@dataclass
class WorkerStub(StubBackend):
    """A stub of which the images say, by their device, which process made them."""

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """One outcome for each request, in order."""
        for index, request in enumerate(requests):
            if cancel.is_set():
                return
            on_event(Step(indices=(index,), step=1, steps=2))
            word, _, path = request.prompt.partition(" ")
            if word == "note":
                on_event(Notice(message=f"It is: {request.prompt}", indices=(index,)))
            while (word == "hold" and not Path(path).exists()) or (
                word == "hang-once" and _first_time(Path(path))
            ):
                time.sleep(0.02 if word == "hold" else 3600)
                if cancel.is_set():
                    return
            time.sleep(self.pause)
            if error := self.fails(request):
                yield Failure(index=index, request=request, error=error)
                continue
            made = painted(index, request)
            yield replace(made, info=replace(made.info, device=str(os.getpid())))


def make_short_of_memory(options: LocalOptions) -> LocalBackend:
    """A worker's local backend; of all workers one runs out of memory once.

    The variable ONCE names the file that tells whether it has.
    """
    from diffusers import UNet2DConditionModel

    denoiser: Any = UNet2DConditionModel
    original = denoiser.forward

    def forward(*arguments: object, **named: object) -> object:
        if _first_time(Path(os.environ["ONCE"])):
            raise gpu.out_of_memory()
        return original(*arguments, **named)

    denoiser.forward = forward
    return LocalBackend(options)


def make_stub(options: LocalOptions) -> WorkerStub:
    """A worker's backend."""
    return WorkerStub(pause=0.02, fails=_refuse)
