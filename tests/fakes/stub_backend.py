"""Backend for tests: yields each image in one colour at once, and can be told to fail."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event as Flag

from PIL import Image

from t2i_cli import __version__
from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.errors import ModelError, T2IError
from t2i_cli.events import Loaded, Loading, Notice, OnEvent, Preview, Step
from t2i_cli.image_price import ImagePrice
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import GenerateRequest, ResolvedRequest


@dataclass
class StubBackend:
    """Implements Backend; `fails` gives a request's error, `pause` the seconds per pass.

    With `steps`, passes of `pass_size` images have two steps each. With `loading`, its seconds come
    first.
    """

    pause: float = 0.0
    loading: float = 0.0
    pass_size: int = 1
    steps: bool = False
    fails: Callable[[ResolvedRequest], T2IError | None] = lambda request: None
    made: list[ResolvedRequest] = field(default_factory=list)
    side: int = 16
    told: Callable[[ResolvedRequest], dict[str, object]] = lambda request: {}
    commits: Callable[[str, str | None], str | None] = lambda model, revision: None
    price: Callable[[ResolvedRequest], ImagePrice | None] = lambda request: None

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """The catalogue's models, postcard by default."""
        spec = catalog.find_in_catalog(request.model or "postcard", request.revision)
        if spec is None:
            raise ModelError(f"The model {request.model!r} is unknown.")
        return spec

    def check(self, request: ResolvedRequest) -> None:
        """Every request can be honoured."""

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """What it was told to need."""
        return self.told(request)

    def image_price(self, request: ResolvedRequest) -> ImagePrice | None:
        """As it was told."""
        return self.price(request)

    def parallelism(self) -> int:
        """Return 1: its runs follow each other."""
        return 1

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """As it was told."""
        return self.commits(model, revision)

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Nothing takes time."""

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """One outcome for each request, in order."""
        if self.loading:
            on_event(Loading(model="stub", device="cpu"))
            time.sleep(self.loading)
            on_event(Loaded(model="stub", device="cpu", seconds=self.loading))
        for index, request in enumerate(requests):
            if index % self.pass_size == 0:
                if cancel.is_set():
                    return
                self._denoise(range(index, min(index + self.pass_size, len(requests))), on_event)
            for step in range(1, 1 + (previews[index] if previews else 0)):
                small = Image.new("RGB", (4, 4), (40 * step, 0, 0))
                on_event(Preview(index=index, step=step, steps=4, image=small))
            self.made.append(request)
            if error := self.fails(request):
                yield Failure(index=index, request=request, error=error)
                continue
            yield painted(index, request, self.side)

    def _denoise(self, members: Sequence[int], on_event: OnEvent) -> None:
        if self.steps:
            on_event(Step(indices=tuple(members), step=1, steps=2))
        time.sleep(self.pause)
        if self.steps:
            on_event(Step(indices=tuple(members), step=2, steps=2))

    def close(self) -> None:
        """Nothing is held."""


class Noting(StubBackend):
    """Sends one notice for all requests, and one for the requests of each prompt."""

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """One outcome for each request, in order."""
        on_event(Notice(message="It is for all.", hint="`t2i show` shows more."))
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(request.prompt, []).append(index)
        for prompt, indices in alike.items():
            on_event(Notice(message=f"It is: {prompt}", indices=tuple(indices)))
        yield from super().run(requests, on_event, cancel, previews)


@dataclass
class Held(StubBackend):
    """Yields images once `go` is set; until then every forward pass takes step after step.

    `passes` are the requests of each; `cancelled` counts those that were cancelled.
    """

    go: Flag = field(default_factory=Flag)
    passes: list[list[ResolvedRequest]] = field(default_factory=list)
    cancelled: int = 0

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """One outcome for each request, in order; previews are of the first steps."""
        self.passes.append(list(requests))
        step = 0
        while not cancel.is_set():
            step += 1
            on_event(Step(indices=tuple(range(len(requests))), step=step, steps=1000))
            for index, wanted in enumerate(previews):
                if step <= wanted:
                    shown = painted(index, requests[index]).image
                    on_event(Preview(index=index, step=step, steps=1000, image=shown))
            if self.go.wait(0.01):
                yield from super().run(requests, on_event, cancel)
                return
        self.cancelled += 1


def painted(index: int, request: ResolvedRequest, side: int = 16) -> GeneratedImage:
    """An image whose colour follows from the request."""
    digest = hashlib.sha256(repr(request.to_json()).encode()).digest()
    return GeneratedImage(
        index=index,
        request=request,
        image=Image.new("RGB", (side, side), (digest[0], digest[1], digest[2])),
        info=GenerationInfo(
            backend="local",
            model=request.model,
            device="cpu",
            dtype="float32",
            batch_size=1,
            libraries={"t2i": __version__},
        ),
        seconds=0.5,
    )
