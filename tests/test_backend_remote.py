"""What the backends share that make images elsewhere: patience, calls in flight, answers."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from threading import Event as Flag

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from t2i_cli.backend import CancellationToken, Failure, GeneratedImage
from t2i_cli.errors import (
    InputError,
    InternalError,
    OutOfMemoryError,
    QuotaError,
    RemoteError,
    TimedOutError,
)
from t2i_cli.events import Event, Notice, RequestSent
from t2i_cli.files import image_files
from t2i_cli.net import error_body, image_decoding, response_metadata, retry
from t2i_cli.net.concurrency import InFlightCall, run_concurrently
from t2i_cli.net.http_client import HttpClient, HttpResponse, is_loopback_url
from t2i_cli.net.retry import (
    CallCancelledError,
    RetryableError,
    RetryPolicy,
    call_with_retry,
)
from t2i_cli.net.throttle import Throttle
from tests.factories import picture, request
from tests.fakes.images_server import running_images
from tests.fakes.stub_backend import painted


class Waits(Flag):
    """A flag that records how long it is waited for, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return self.is_set()


def answer(body: object, status: int = 500, **headers: str) -> HttpResponse:
    """What a server answered, with a JSON body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpResponse(status=status, headers=named, body=json.dumps(body).encode(), seconds=0.1)


def failing(times: int, again: Callable[[], Exception]) -> Callable[[float], str]:
    """An attempt that fails so often, and then works."""
    left = [times]

    def attempt(_seconds: float) -> str:
        if left[0]:
            left[0] -= 1
            raise again()
        return "made"

    return attempt


def overloaded(after: float | None = None) -> RetryableError:
    return RetryableError(
        RemoteError("It is overloaded.", hint="Wait."), after=after, overloaded=True
    )


def test_pauses_grow_and_vary() -> None:
    stop, kept = Waits(), RetryPolicy(retries=8, timeout=3600, from_options=True)
    assert call_with_retry(failing(8, overloaded), kept, Throttle(4), stop) == "made"
    for tries, seconds in enumerate(stop.seconds):
        most = min(retry.MAX_PAUSE, 2.0**tries)
        assert most / 2 <= seconds <= most
    assert len({round(s / 2.0**n, 6) for n, s in enumerate(stop.seconds[:5])}) == 5


def test_retry_after_is_waited_for() -> None:
    stop = Waits()
    call_with_retry(
        failing(1, lambda: overloaded(7)),
        RetryPolicy(retries=1, timeout=60, from_options=True),
        Throttle(1),
        stop,
    )
    (waited,) = stop.seconds
    assert 7 <= waited <= 8


def test_retry_after_of_nothing_keeps_the_backoff() -> None:
    stop = Waits()
    call_with_retry(
        failing(4, lambda: overloaded(0)),
        RetryPolicy(retries=4, timeout=60, from_options=True),
        Throttle(1),
        stop,
    )
    for tries, seconds in enumerate(stop.seconds):
        assert seconds >= 2.0**tries / 2


def test_one_refusal_holds_the_others_up_no_longer_than_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, throttle = [100.0], Throttle(2)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with pytest.raises(RemoteError):
        call_with_retry(
            failing(1, lambda: overloaded(9000)),
            RetryPolicy(retries=5, timeout=60, from_options=True),
            throttle,
            Waits(),
        )
    assert throttle.limit == 0
    now[0] += 61
    assert throttle.limit == 1


def waking() -> RetryableError:
    return RetryableError(RemoteError("It wakes up."), pause=10.0, cold_start=True)


def test_what_wakes_up_is_waited_for_whatever_the_retries() -> None:
    stop = Waits()
    kept = RetryPolicy(retries=0, timeout=600, from_options=True)
    assert call_with_retry(failing(12, waking), kept, Throttle(1), stop) == "made"
    assert len(stop.seconds) == 12
    assert sum(stop.seconds) > 100
    with pytest.raises(RemoteError) as caught:
        call_with_retry(
            failing(1, waking),
            RetryPolicy(retries=9, timeout=3, from_options=True),
            Throttle(1),
            Waits(),
        )
    assert caught.value.hint == "It was tried once; --timeout sets the patience."


def test_retries_and_the_timeout_bound_it() -> None:
    with pytest.raises(RemoteError, match="overloaded") as caught:
        call_with_retry(
            failing(9, overloaded),
            RetryPolicy(retries=2, timeout=60, from_options=True),
            Throttle(1),
            Waits(),
        )
    assert caught.value.hint == (
        "Wait. It was tried 3 times; --retries and --timeout set the patience."
    )
    stop = Waits()
    with pytest.raises(RemoteError) as caught:
        call_with_retry(
            failing(9, lambda: overloaded(90)),
            RetryPolicy(retries=5, timeout=60, from_options=True),
            Throttle(1),
            stop,
        )
    assert "tried once and asks to wait 90 s" in str(caught.value.hint)
    assert stop.seconds == []


def test_what_is_no_passing_failure_is_not_tried_again() -> None:
    calls: list[float] = []

    def attempt(seconds: float) -> str:
        calls.append(seconds)
        raise InputError("A wrong field.")

    with pytest.raises(InputError):
        call_with_retry(
            attempt, RetryPolicy(retries=5, timeout=60, from_options=True), Throttle(1), Waits()
        )
    assert len(calls) == 1
    assert 59 < calls[0] <= 60


def test_nobody_waits_any_more() -> None:
    stop = Waits()
    stop.set()
    kept = RetryPolicy(retries=5, timeout=60, from_options=True)
    with pytest.raises(CallCancelledError):
        call_with_retry(failing(1, overloaded), kept, Throttle(1), stop)
    with pytest.raises(CallCancelledError):
        call_with_retry(failing(0, overloaded), kept, Throttle(1), stop)


def test_the_throttle_halves_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    throttle = Throttle(8)
    for _ in range(5):  # calls that were in flight together
        throttle.slow_down()
    assert throttle.limit == 4
    now[0] += 2
    throttle.slow_down(after=3.0)
    assert throttle.limit == 0
    now[0] += 3.1
    assert throttle.limit == 2
    for _ in range(60):
        throttle.speed_up()
    assert throttle.limit == 8
    for _ in range(9):
        now[0] += 2
        throttle.slow_down()
    assert throttle.limit == 1


def test_every_answer_opens_the_throttle_a_little() -> None:
    throttle = Throttle(8)
    throttle.slow_down()
    rooms = []
    for _ in range(4):
        throttle.speed_up()
        rooms.append(throttle.limit)
    # As many answers as there are calls in flight make room for one more.
    assert rooms == [4, 4, 4, 4]
    throttle.speed_up()
    assert throttle.limit == 5


class Server:
    """Makes pictures in `calls`, some at a time, and remembers how many those were."""

    def __init__(self, seconds: float = 0.01) -> None:
        self.seconds = seconds
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.made: list[int] = []

    def __call__(self, call: InFlightCall) -> GeneratedImage:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            if call.stop.wait(self.seconds):
                raise CallCancelledError
            call.note("The server is slow.")
            if call.index == 3:
                raise QuotaError("No more.")
            self.made.append(call.index)
            return painted(call.index, call.request)
        finally:
            with self.lock:
                self.now -= 1


def run(
    server: Callable[[InFlightCall], GeneratedImage],
    count: int = 9,
    room: int = 3,
    cancel: Flag | None = None,
    events: list[Event] | None = None,
    abandoned: list[bool] | None = None,
) -> Iterator[GeneratedImage | Failure]:
    """The outcomes of several requests."""
    return run_concurrently(
        [request(seed=n) for n in range(count)],
        server,
        Throttle(room),
        (events if events is not None else []).append,
        cancel or Flag(),
        lambda: (abandoned if abandoned is not None else []).append(True),
    )


def test_every_request_has_one_outcome() -> None:
    server, events, abandoned = Server(), list[Event](), list[bool]()
    found = list(run(server, events=events, abandoned=abandoned))
    assert sorted(o.index for o in found) == list(range(9))
    assert all(o.request.seed == o.index for o in found)
    (failure,) = [o for o in found if isinstance(o, Failure)]
    assert (failure.index, failure.error.message) == (3, "No more.")
    assert 2 <= server.most <= 3
    assert [e.indices for e in events if isinstance(e, RequestSent)] == [(n,) for n in range(9)]
    assert [e for e in events if isinstance(e, Notice)] == [Notice(message="The server is slow.")]
    assert not abandoned


def test_cancel_ends_it_at_once() -> None:
    server, cancel, abandoned = Server(seconds=60), Flag(), list[bool]()
    threading.Timer(0.2, cancel.set).start()
    assert list(run(server, cancel=cancel, abandoned=abandoned)) == []
    assert server.made == []
    assert abandoned == [True]


def test_soon_begins_nothing_more_and_keeps_what_is_in_flight() -> None:
    soon = Flag()
    server = Server(seconds=0.2)
    found = []
    for outcome in run(server, cancel=CancellationToken(soon)):
        soon.set()
        found.append(outcome.index)
    assert sorted(found) == [0, 1, 2]


def test_a_bug_in_a_call_is_that_images_failure() -> None:
    server = Server()

    def broken(call: InFlightCall) -> GeneratedImage:
        if call.index == 1:
            raise ZeroDivisionError("it broke")
        return server(call)

    found = {outcome.index: outcome for outcome in run(broken)}
    failure = found.pop(1)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, InternalError)
    assert isinstance(failure.error.__cause__, ZeroDivisionError)
    assert failure.error.message == "An unexpected ZeroDivisionError: it broke"
    assert sorted(found) == [0, *range(2, 9)]


def test_memory_that_runs_out_in_a_call_comes_out() -> None:
    def broken(call: InFlightCall) -> GeneratedImage:
        raise MemoryError

    with pytest.raises(MemoryError):
        list(run(broken))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
def test_images_are_decoded(format: str, start: str) -> None:
    stream = io.BytesIO()
    picture().save(stream, format)
    text = start + base64.encodebytes(stream.getvalue()).decode()
    image = image_decoding.decode_base64_image(text)
    assert (image.mode, image.size) == ("RGB", (64, 48))
    red, _, blue = image.getpixel((30, 4))  # type: ignore[misc]
    assert red > 150 > blue


def png(size: tuple[int, int] = (64, 48)) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise(size, 90).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (base64.b64encode(png()).decode()[:-3], "cut off or no base64"),
        ("a star!", "cut off or no base64"),
        (base64.b64encode(png()[:900]).decode(), "cut off or damaged"),
        (base64.b64encode(png()[:30]).decode(), "cut off or damaged"),
        (base64.b64encode(b"hello, world").decode(), "no PNG, JPEG or WebP image"),
        ("", "no PNG, JPEG or WebP image"),
    ],
)
def test_what_is_no_image_is_told_of(text: str, sentence: str) -> None:
    with pytest.raises(RemoteError, match=sentence) as caught:
        image_decoding.decode_base64_image(text)
    assert caught.value.hint


@given(st.binary(max_size=300), st.integers(0, 200))
def test_whatever_bytes_come_only_our_error_leaves(noise: bytes, keep: int) -> None:
    for data in (noise, png((8, 8))[:keep] + noise):
        try:
            image_decoding.decode_base64_image(base64.b64encode(data).decode())
        except RemoteError:
            pass


def test_an_image_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_PIXELS", 100)
    with pytest.raises(RemoteError, match="more than 100 pixels"):
        image_decoding.decode_image(png())


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"error": {"message": "Bad size", "param": "size"}}, "Bad size", "size"),
        ({"detail": "Wrong\n  size"}, "Wrong size", None),
        ({"detail": [{"loc": ["body", "n"], "msg": "too many"}]}, "too many", "n"),
        ({"error": "no room"}, "no room", None),
        ([{"error": {"code": 400, "message": "bad", "status": "X"}}], "bad", None),
        ({"message": "Prediction failed"}, "Prediction failed", None),
        ({"error": {"message": '{"error": {"message": "inner"}}'}}, "inner", None),
        ("oh", "oh", None),
    ],
)
def test_every_form_of_error_is_read(body: object, message: str, param: str | None) -> None:
    found = error_body.parse_error_body(answer(body))
    assert (found.message, found.param) == (message, param)


def test_an_error_of_t2i_comes_back_whole() -> None:
    error = InputError("No such steps.", hint="At most 1,000.", field="steps")
    sent = {"error": {"code": 400, "message": "No such steps.", "t2i": error.to_json()}}
    own = error_body.parse_error_body(answer(sent)).t2i_error
    assert isinstance(own, InputError)
    assert own.to_json() == error.to_json()
    openai = {"error": {"message": "Too big.", "code": "out_of_memory", "param": None}}
    assert isinstance(error_body.parse_error_body(answer(openai)).t2i_error, OutOfMemoryError)


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: topsecret-12",
        "see https://storage.example/o/1?X-Signature=topsecret-12&Expires=1",
        "got Authorization: Bearer topsecret-12",
        "token ya29.topsecret-12, key sk-topsecret-12, hf_topsecret-12",
    ],
)
def test_no_secret_is_repeated(text: str) -> None:
    shown = error_body.parse_error_body(
        answer({"error": {"message": text}}), "topsecret-12"
    ).message
    assert "topsecret" not in shown
    assert "topsecret" not in error_body.sanitise(text) or text.startswith("Incorrect")


def test_a_long_text_of_many_lines_is_one_short_line() -> None:
    shown = error_body.sanitise("a\n\x1b[31mb " * 200)
    assert len(shown) == error_body.MAX_MESSAGE + 1
    assert "\n" not in shown
    assert "\x1b" not in shown


def test_retry_after_in_both_forms() -> None:
    assert answer({}, retry_after="12").retry_after == 12
    assert (
        20
        < (answer({}, retry_after=formatdate(time.time() + 30, usegmt=True)).retry_after or 0)
        <= 30
    )
    assert answer({}, retry_after="1.5").retry_after == 1.5
    assert answer({}, retry_after="Wed, 21 Oct 2015 07:28:00 GMT").retry_after == 0
    # No pause may be longer than a lock can wait.
    assert answer({}, retry_after="9" * 400).retry_after == threading.TIMEOUT_MAX
    for nonsense in ("soon", "-3", "1.2.3", "Wed, 99 Oct 99999 07:28:00 GMT"):
        assert answer({}, retry_after=nonsense).retry_after is None
    assert answer({}).retry_after is None


def test_an_echo_confirms_the_seed_or_contradicts() -> None:
    wanted = request()
    found = response_metadata.parse_response_metadata(
        {"t2i": {"request": wanted.to_json() | {"seed": 42.0}, "lock": {"x": 1}}}
    )
    found.check_request(wanted)
    assert found.seed_confirmed(wanted)
    assert found.generation_info(wanted, backend="http").seed_confirmed
    other = response_metadata.parse_response_metadata({"t2i": {"request": {"steps": 20}}})
    assert not other.seed_confirmed(wanted)
    with pytest.raises(RemoteError, match="with steps 20, not 30"):
        other.check_request(wanted)
    for nothing in ("text", {"t2i": "text"}, {"t2i": {"request": 1, "lock": []}}, None):
        assert (
            response_metadata.parse_response_metadata(nothing)
            == response_metadata.ResponseMetadata()
        )


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_the_wire_tells_what_went_wrong() -> None:
    wire = HttpClient("http://127.0.0.1", 1)
    with pytest.raises(RetryableError) as refused:
        wire.request("GET", f"http://127.0.0.1:{(port := free_port())}/v1", timeout=5)
    assert refused.value.error.message == f"127.0.0.1:{port} cannot be reached."
    with pytest.raises(InputError):
        wire.request("GET", "ftp://127.0.0.1/", timeout=5)
    with running_images() as server:
        server.pause = 5
        with pytest.raises(TimedOutError, match=r"did not answer within 0\.2 s"):
            wire.request("POST", f"{server.url}/images/generations", json={}, timeout=0.2)
    wire.close()
    wire.close()


def test_a_call_can_be_broken_off() -> None:
    with running_images() as server:
        server.pause = 60
        wire = HttpClient(server.url, 1)
        ended = Flag()

        def ask() -> None:
            with pytest.raises(RetryableError, match="broke"):
                wire.request("POST", f"{server.url}/images/generations", json={}, timeout=120)
            ended.set()

        threading.Thread(target=ask, daemon=True).start()
        while not server.in_flight:
            time.sleep(0.01)
        wire.abort()
        assert ended.wait(30)
        wire.close()


def test_loopback_is_known() -> None:
    assert all(
        map(is_loopback_url, ("http://127.0.0.1:1/v1", "http://localhost", "http://[::1]:80"))
    )
    assert not any(
        map(is_loopback_url, ("http://example.org", "http://10.0.0.1", "http://127.evil.io"))
    )


@pytest.mark.parametrize(
    ("jitter", "after", "pause"),
    [(1.0, 5.0, 5.6), (0.5, 5.0, 5.3), (1.0, 20.0, 21.0), (0.5, 20.0, 20.5), (1.0, 0.0, 1.0)],
)
def test_what_the_server_asks_for_is_waited_for_and_a_little_more(
    jitter: float, after: float, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: jitter)
    waits = Waits()
    failures = [RetryableError(RemoteError("Not now."), after=after)]

    def attempt(left: float) -> str:
        if failures:
            raise failures.pop()
        return "made"

    assert call_with_retry(attempt, RetryPolicy(retries=1), stop=waits) == "made"
    assert waits.seconds == [pytest.approx(pause)]


def test_only_a_crowded_server_slows_other_calls_down(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    for crowded, room in [(False, 8), (True, 4)]:
        throttle = Throttle(8)
        failures = [RetryableError(RemoteError("Not now."), pause=0.01, overloaded=crowded)]

        def attempt(left: float, failures: list[RetryableError] = failures) -> str:
            if failures:
                raise failures.pop()
            return "made"

        call_with_retry(attempt, RetryPolicy(retries=1), throttle=throttle)
        assert throttle.limit == room
    assert len(slept) == 2 and all(0.005 <= seconds <= 0.01 for seconds in slept)


def test_an_attempt_has_a_moment_at_least() -> None:
    given: list[float] = []
    call_with_retry(given.append, RetryPolicy(retries=0, timeout=-5))
    assert given == [0.001]


def test_a_second_after_the_start_the_first_refusal_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.5]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    throttle = Throttle(8)
    assert throttle.limit == 8
    now[0] = 1.0
    throttle.slow_down()
    assert throttle.limit == 4


def test_pauses_double_up_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    waits = Waits()

    def attempt(left: float) -> None:
        raise RetryableError(RemoteError("Not now."))

    with pytest.raises(RemoteError):
        call_with_retry(attempt, RetryPolicy(retries=8), stop=waits)
    assert waits.seconds == [1, 2, 4, 8, 16, 32, 60, 60]


def test_refusals_of_one_second_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    throttle = Throttle(8)
    rooms = []
    for later in (0.0, 0.75, 0.25):
        now[0] += later
        throttle.slow_down()
        rooms.append(throttle.limit)
    assert rooms == [4, 4, 2]
