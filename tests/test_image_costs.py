"""What images cost that are billed one by one: the sums, the limit, and the question before."""

import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from threading import Event as Flag
from threading import Lock, Thread

import pytest

from t2i_cli.backend import CancellationToken, Failure, GeneratedImage
from t2i_cli.cost_limit import CostLimitedBackend, CostLimitError
from t2i_cli.driver import run_backend
from t2i_cli.errors import (
    ContentFilteredError,
    InputError,
    QuotaError,
    RemoteError,
    T2IError,
    TimedOutError,
)
from t2i_cli.events import Event, Notice, OnEvent, RequestSent, Step
from t2i_cli.image_costs import (
    ImageCosts,
    check_cost_limit,
    estimated_cost_text,
    exact_usd,
    format_usd,
    images_within,
)
from t2i_cli.image_price import ImagePrice
from t2i_cli.net.concurrency import InFlightCall, run_concurrently
from t2i_cli.net.throttle import Throttle
from t2i_cli.request import ResolvedRequest
from t2i_cli.terminal.console import Console
from t2i_cli.terminal.cost_consent import confirm_costs
from tests import factories
from tests.fakes.priced_t2i import SOURCE, billed, refusal
from tests.fakes.stub_backend import StubBackend, painted

SMALL, LARGE = ImagePrice(usd=0.134, source=SOURCE), ImagePrice(usd=0.24, source=SOURCE)
UNKNOWN = ImagePrice(usd=None, source="billed by nobody")


@pytest.mark.parametrize(
    ("prices", "text"),
    [
        ([SMALL] * 6, f"6 images × 0.134 USD = 0.804 USD; an estimate ({SOURCE})"),
        (
            [SMALL, LARGE, LARGE, None],
            f"1 image × 0.134 USD + 2 images × 0.24 USD = 0.614 USD; an estimate ({SOURCE})",
        ),
        ([UNKNOWN] * 2, "not known for 2 images; an estimate (billed by nobody)"),
        (
            [UNKNOWN, LARGE],
            "1 image × 0.24 USD = 0.24 USD, and not known for 1 image; "
            f"an estimate (billed by nobody; {SOURCE})",
        ),
        ([ImagePrice(usd=12.5, source="s")] * 1000, "1,000 images × 12.50 USD = 12,500.00 USD"),
        ([None, None], None),
        ([], None),
    ],
)
def test_a_plan_shows_images_times_price_and_never_0_for_an_unknown_one(
    prices: list[ImagePrice | None], text: str | None
) -> None:
    found = estimated_cost_text(prices, None)
    assert found == text or (found and text and found.startswith(text))
    costs = ImageCosts(prices)
    if costs.unknown:
        assert costs.to_json()["usd"] is None


def test_sums_are_exact_so_that_three_times_10_cents_fit_30() -> None:
    cents = [ImagePrice(usd=0.1, source="s")] * 4
    assert images_within(cents, 0.3) == 3
    assert ImageCosts(cents[:3]).known_usd == Decimal("0.3")


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (0.0669999, "0.0669999"),
        (0.00000004, "0.00000004"),
        (0.1, "0.10"),
        (1234.5, "1,234.50"),
        (5.0, "5.00"),
        (1e21, "1,000,000,000,000,000,000,000.00"),
    ],
)
def test_an_amount_is_told_as_it_was_given(usd: float, text: str) -> None:
    assert format_usd(exact_usd(usd)) == text


def test_a_limit_just_below_what_it_is_too_small_for_reads_as_below() -> None:
    with pytest.raises(InputError, match=r"--max-cost 0\.0669999 is less .* 0\.067 USD"):
        check_cost_limit([ImagePrice(usd=0.067, source="s")], 0.0669999)


def test_a_limit_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(InputError, match="the price of 1 image is not known .billed by nobody"):
        check_cost_limit([SMALL, UNKNOWN], 5)
    with pytest.raises(InputError, match=r"--max-cost 0\.10 is less than one image costs: 0\.134"):
        check_cost_limit([SMALL, SMALL], 0.1)
    check_cost_limit([SMALL, SMALL], 0.134)
    check_cost_limit([None], 0)
    check_cost_limit([], 0)


def requests(*prompts: str) -> list[ResolvedRequest]:
    return [factories.request(prompt=prompt, seed=n) for n, prompt in enumerate(prompts)]


class Calling(StubBackend):
    """Makes images by calls of which several are in flight; counts them."""

    begun = 0
    most = 0

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """One outcome for each request, in order of completion."""
        alone = Lock()

        def send(call: InFlightCall) -> GeneratedImage:
            with alone:
                self.begun += 1
            if error := self.fails(call.request):
                raise error
            return painted(call.index, call.request)

        throttle = Throttle(8)
        return run_concurrently(requests, send, throttle, on_event, cancel, abort=lambda: None)


@pytest.mark.parametrize("kind", [StubBackend, Calling])
def test_images_beyond_the_limit_are_not_begun(kind: type[StubBackend]) -> None:
    backend = kind(price=billed(0.1))
    limited = CostLimitedBackend(backend, 0.35)
    outcomes = list(run_backend(limited, requests(*"abcdef"), lambda _: None, Flag()))
    assert sorted(outcome.index for outcome in outcomes) == [0, 1, 2]
    assert limited.reached
    assert limited.spent == Decimal("0.3")
    if isinstance(backend, Calling):
        assert backend.begun == 3


def test_what_was_refused_before_any_work_makes_room_and_what_may_be_billed_does_not() -> None:
    backend = Calling(price=billed(0.1), fails=refusal)
    limited = CostLimitedBackend(backend, 0.2)
    asked = requests("quota", "withheld", "a", "b", "c")
    told: list[Event] = []
    outcomes = {o.index: o for o in run_backend(limited, asked, told.append, Flag())}
    failed = {
        index: type(outcome.error)
        for index, outcome in outcomes.items()
        if isinstance(outcome, Failure)
    }
    assert failed == {0: QuotaError, 1: ContentFilteredError}
    assert outcomes.keys() == {0, 1, 2}
    assert all(outcome.request == asked[index] for index, outcome in outcomes.items())
    assert [e.indices for e in told if isinstance(e, RequestSent)] == [(0,), (1,), (2,)]
    assert limited.spent == Decimal("0.2")
    assert limited.reached


def test_runs_beside_each_other_stay_within_the_limit_and_wait_for_what_may_be_refused() -> None:
    go = Flag()

    def refused_late(request: ResolvedRequest) -> T2IError | None:
        go.wait(30)
        return QuotaError("Full.") if request.prompt == "quota" else None

    backend = Calling(price=billed(0.1), fails=refused_late)
    limited = CostLimitedBackend(backend, 0.2, fails_rest=True)
    found: list[GeneratedImage | Failure] = []

    def run_one(prompt: str) -> None:
        found.extend(run_backend(limited, requests(prompt), lambda _: None, Flag()))

    threads = [Thread(target=run_one, args=(prompt,)) for prompt in ("quota", "a")]
    for thread in threads:
        thread.start()
    while backend.begun < 2:
        time.sleep(0.01)
    threads += [Thread(target=run_one, args=(prompt,)) for prompt in ("b", "c")]
    for thread in threads[2:]:
        thread.start()
    time.sleep(0.3)
    assert (backend.begun, found) == (2, [])  # the others wait for what becomes of the first
    go.set()
    for thread in threads:
        thread.join(30)
    errors = Counter(type(one.error) for one in found if isinstance(one, Failure))
    assert errors == {QuotaError: 1, CostLimitError: 1}
    assert len(found) == 4
    assert (backend.begun, limited.spent) == (3, Decimal("0.2"))


def test_what_holds_for_all_images_is_told_once_however_often_the_backend_runs() -> None:
    class Telling(Calling):
        def run(
            self,
            requests: Sequence[ResolvedRequest],
            on_event: OnEvent,
            cancel: Flag,
            previews: Sequence[int] = (),
        ) -> Iterator[GeneratedImage | Failure]:
            on_event(Notice(message="It is billed."))
            on_event(Notice(message="Another size.", indices=(0,)))
            yield from super().run(requests, on_event, cancel, previews)

    limited = CostLimitedBackend(Telling(price=billed(0.1), fails=refusal), 0.1)
    told: list[Event] = []
    list(run_backend(limited, requests("quota", "quota", "a"), told.append, Flag()))
    notices = [event for event in told if isinstance(event, Notice)]
    assert [one.indices for one in notices if one.message == "It is billed."] == [()]
    assert [one.indices for one in notices if one.message == "Another size."] == [(0,), (1,), (2,)]


@pytest.mark.parametrize("error", [RemoteError("cut off"), TimedOutError("late")])
def test_failures_that_may_be_billed_count(error: T2IError) -> None:
    limited = CostLimitedBackend(StubBackend(price=billed(0.1), fails=lambda _: error), 0.2)
    outcomes = list(run_backend(limited, requests(*"abcd"), lambda _: None, Flag()))
    assert len(outcomes) == 2
    assert limited.spent == Decimal("0.2")


def test_a_run_that_is_stopped_counts_what_was_sent_and_is_not_over_its_limit() -> None:
    class Stuck(StubBackend):
        def run(
            self,
            requests: Sequence[ResolvedRequest],
            on_event: OnEvent,
            cancel: Flag,
            previews: Sequence[int] = (),
        ) -> Iterator[GeneratedImage | Failure]:
            on_event(Step(indices=(0, 1), step=1, steps=2))
            yield painted(0, requests[0])
            stop.soon.set()

    stop = CancellationToken(Flag())
    limited = CostLimitedBackend(Stuck(price=billed(0.1)), 0.3)
    outcomes = list(run_backend(limited, requests(*"abcdef"), lambda _: None, stop))
    assert [outcome.index for outcome in outcomes] == [0]
    assert limited.spent == Decimal("0.2")
    assert not limited.reached


def test_a_server_fails_what_is_over_its_limit_and_its_check_needs_a_price() -> None:
    limited = CostLimitedBackend(StubBackend(price=billed(0.1)), 0.1, fails_rest=True)
    for _ in range(2):
        made = list(run_backend(limited, requests("a", "b"), lambda _: None, Flag()))
    assert [type(o.error) for o in made if isinstance(o, Failure)] == [CostLimitError] * 2
    unknown = CostLimitedBackend(StubBackend(price=billed(None)), 1, fails_rest=True)
    with pytest.raises(InputError, match="is not known"):
        unknown.check(factories.request())


class Answering(Console):
    """A console with a person at it, who answers `typed`."""

    asks = True
    typed = ""
    questions: tuple[str, ...] = ()

    def ask(self, question: str, *, default: bool = False) -> bool:
        """Keep the question."""
        self.questions = (*self.questions, question)
        return self.typed == "y"


@pytest.mark.parametrize(
    ("prices", "asked"),
    [
        ([ImagePrice(usd=0.1, source=SOURCE)] * 10, False),
        ([ImagePrice(usd=0.1, source=SOURCE)] * 11, True),
        ([UNKNOWN] * 4, False),
        ([UNKNOWN] * 5, True),
        ([UNKNOWN] * 3 + [LARGE] * 2, True),
        ([None] * 1000, False),
    ],
)
def test_more_than_1_usd_is_asked_for_also_where_a_price_is_not_known(
    prices: list[ImagePrice | None], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = ImageCosts(prices)
    yes, no = Answering(), Answering()
    yes.typed = "y"
    confirm_costs(costs, yes, agreed=False)
    assert len(yes.questions) == asked
    monkeypatch.setattr("sys.stdin", io.StringIO())
    if not asked:
        confirm_costs(costs, no, agreed=False)
        confirm_costs(costs, Console(), agreed=False)
        return
    with pytest.raises(InputError, match="Declined; no image was made"):
        confirm_costs(costs, no, agreed=False)
    with pytest.raises(InputError, match="There is nobody to ask") as refused:
        confirm_costs(costs, Console(), agreed=False)
    assert "--yes agrees" in str(refused.value.hint)
    assert ("--max-cost" in str(refused.value.hint)) == (not costs.unknown)
    confirm_costs(costs, Console(), agreed=True)
