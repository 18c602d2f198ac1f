"""Keeps what images cost within a limit, on any backend whose images are billed one by one."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from threading import Condition
from threading import Event as Flag
from typing import TYPE_CHECKING, cast

from t2i_cli.backend import Backend, CancellationToken, Failure, GeneratedImage
from t2i_cli.errors import QuotaError
from t2i_cli.events import Event, Notice, OnEvent, RequestSent, Step, move_event
from t2i_cli.image_costs import (
    check_cost_limit,
    check_known_prices,
    exact_usd,
    format_usd,
    is_billed,
)
from t2i_cli.image_price import ImagePrice
from t2i_cli.model_spec import ModelSpec
from t2i_cli.request import GenerateRequest, ResolvedRequest

if TYPE_CHECKING:
    from collections.abc import Generator


_POLL_INTERVAL = 0.1
"""Seconds between two checks of whether to stop."""


class CostLimitError(QuotaError):
    """The limit of what images may cost is reached."""


class CostLimitedBackend:
    """A backend that begins no image which could pass a limit in USD.

    An image counts from its beginning; one that was refused before any work is taken off again.
    `reached` says whether images were left out, `spent` what the others cost. With `fails_rest`
    those left out fail; else they get no outcome.
    """

    def __init__(self, backend: Backend, limit: float, *, fails_rest: bool = False) -> None:
        self.limit = limit
        self.spent = Decimal(0)
        self.reached = False
        self._backend = backend
        self._fails_rest = fails_rest
        self._settled = Condition()
        self._set_aside = Decimal(0)

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """As the backend."""
        return self._backend.describe(request)

    def check(self, request: ResolvedRequest) -> None:
        """As the backend. Raises InputError also for an image at an unknown price."""
        self._backend.check(request)
        check_cost_limit([self._backend.image_price(request)], self.limit)

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """As the backend."""
        return self._backend.estimate(request)

    def image_price(self, request: ResolvedRequest) -> ImagePrice | None:
        """As the backend."""
        return self._backend.image_price(request)

    def parallelism(self) -> int:
        """As the backend: an image's price is set aside before it begins."""
        return self._backend.parallelism()

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """As the backend."""
        return self._backend.resolve_revision(model, revision)

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """As the backend."""
        self._backend.load(request, on_event)

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Run the backend with what the limit has room for, again while refusals make room."""
        waiting = deque(range(len(requests)))
        told: set[Notice] = set()

        def tell_once(event: Event) -> None:
            # Each run of the backend tells anew what holds for all images.
            if isinstance(event, Notice) and not event.indices:
                if event in told:
                    return
                told.add(event)
            on_event(event)

        while waiting and not _is_stopping(cancel):
            chosen = self._affordable(requests, waiting, cancel)
            if not chosen:
                self.reached = self.reached or not _is_stopping(cancel)
                break
            yield from self._run_chosen(requests, chosen, tell_once, cancel, previews)
        if self.reached and self._fails_rest:
            for index in waiting:
                yield Failure(index=index, request=requests[index], error=self._limit_error())

    def close(self) -> None:
        """As the backend."""
        self._backend.close()

    def _affordable(
        self, requests: Sequence[ResolvedRequest], waiting: deque[int], cancel: Flag
    ) -> list[int]:
        """Take the first images off `waiting` that the limit has room for, and set it aside.

        While there is none, others' images are waited for, which may be refused and make room.
        """
        chosen: list[int] = []
        first = self._usd(requests[waiting[0]])
        with self._settled:
            while self._room < first and self._set_aside and not _is_stopping(cancel):
                self._settled.wait(_POLL_INTERVAL)
            while waiting and not _is_stopping(cancel):
                usd = self._usd(requests[waiting[0]])
                if self._room < usd:
                    break
                self._set_aside += usd
                chosen.append(waiting.popleft())
        return chosen

    @property
    def _room(self) -> Decimal:
        return exact_usd(self.limit) - self.spent - self._set_aside

    def _settle(self, request: ResolvedRequest, *, billed: bool) -> None:
        """Release what was set aside for an image, which is spent if it was `billed`."""
        usd = self._usd(request)
        with self._settled:
            self._set_aside -= usd
            self.spent += usd if billed else 0
            self._settled.notify_all()

    def _run_chosen(
        self,
        requests: Sequence[ResolvedRequest],
        chosen: Sequence[int],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int],
    ) -> Iterator[GeneratedImage | Failure]:
        begun: set[int] = set()
        unsettled = set(chosen)

        def forward(event: Event) -> None:
            event = move_event(event, chosen)
            if isinstance(event, Step | RequestSent):
                begun.update(event.indices)
            on_event(event)

        outcomes = self._backend.run(
            [requests[index] for index in chosen],
            forward,
            cancel,
            [previews[index] for index in chosen] if previews else (),
        )
        try:
            with closing(cast("Generator[GeneratedImage | Failure]", outcomes)) as generated:
                for outcome in generated:
                    index = chosen[outcome.index]
                    unsettled.discard(index)
                    billed = is_billed(outcome.error if isinstance(outcome, Failure) else None)
                    self._settle(requests[index], billed=billed)
                    yield replace(outcome, index=index)
        finally:
            for index in unsettled:
                # What was sent and given up may be billed.
                self._settle(requests[index], billed=index in begun)

    def _usd(self, request: ResolvedRequest) -> Decimal:
        """What the image costs. Raises InputError if that is not known."""
        price = self._backend.image_price(request)
        check_known_prices([price])
        return exact_usd((price and price.usd) or 0)

    def _limit_error(self) -> CostLimitError:
        return CostLimitError(
            f"The limit of {format_usd(exact_usd(self.limit))} USD for images is reached; "
            "no more are made."
        )


def limit_costs(
    backend: Backend, prices: Sequence[ImagePrice | None], limit: float | None
) -> CostLimitedBackend | None:
    """The backend with a limit, if there is one and its images are billed one by one."""
    billed = any(price is not None for price in prices)
    return CostLimitedBackend(backend, limit) if billed and limit is not None else None


def _is_stopping(cancel: Flag) -> bool:
    soon = isinstance(cancel, CancellationToken) and cancel.soon.is_set()
    return soon or cancel.is_set()
