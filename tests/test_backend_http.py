"""The http backend against a server of OpenAI's images API on loopback, in every dialect."""

import base64
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event as Flag
from typing import Any
from urllib.parse import quote

import pytest

from t2i_cli.backend import Backend, Failure, GeneratedImage
from t2i_cli.backends.http import backend as http_backend
from t2i_cli.backends.http import options as http_options
from t2i_cli.batch import session
from t2i_cli.batch.executor import LocalExecutor
from t2i_cli.batch.interrupt import StopSignal
from t2i_cli.batch.manifest import MAIN_MANIFEST
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.plan import SelectionOptions
from t2i_cli.batch.runner import FAILURES_IN_A_ROW
from t2i_cli.batch.session import BatchConfig
from t2i_cli.errors import (
    AccessError,
    ContentFilteredError,
    InputError,
    ModelError,
    OutOfMemoryError,
    QuotaError,
    RemoteError,
    T2IError,
    TimedOutError,
)
from t2i_cli.events import Notice
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.net import retry
from t2i_cli.net.unreachable import UnreachableError
from t2i_cli.output import metadata
from t2i_cli.output.image_writer import ImageWriter, SavedImage
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.server.options import ServerLimits, ServerOptions
from t2i_cli.terminal.console import Console
from tests import backends
from tests.amounts import full
from tests.conftest import T2I
from tests.fakes.images_server import Body, FakeImages, Fault, error, running_images
from tests.fakes.serving import Running, serving
from tests.fakes.stub_backend import StubBackend, painted
from tests.parallel_runs import check_parallel_runs

KEY = "sk-verysecret-123"
FACTS = {
    "name": "postcard",
    "repo": None,
    "revision": None,
    "steps": 20,
    "guidance_scale": 2.0,
    "width": 128,
    "height": 128,
    "multiple": 8,
    "negative_prompt": True,
    "guidance": True,
}


PAGE = b"<!DOCTYPE html><html><head><title>502 Bad &amp; ugly</title></head><body>x</body></html>"


def ok(body: object) -> Fault:
    """An answer with status 200 and this body."""
    return Fault(raw=json.dumps(body).encode())


OPEN: list[Backend] = []
"""The backends of the test that runs."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeImages]:
    """A server, and settings of the test's own."""
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "t2i.toml"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("T2I_HTTP_API_KEY", "OPENAI_API_KEY", "T2I_BACKEND", "T2I_HTTP_URL"):
        monkeypatch.delenv(name, raising=False)
    with running_images() as state:
        yield state
    while OPEN:
        OPEN.pop().close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses a hundred times as short."""
    pause = retry._pause
    monkeypatch.setattr(retry, "_pause", lambda *told: pause(*told) / 100)


def backend(server: FakeImages, **options: Any) -> Backend:  # noqa: ANN401 - any option
    """The backend as the command line chooses it."""
    OPEN.append(backends.chosen("http", url=server.url, **options))
    return OPEN[-1]


def make(
    backend: Backend,
    notes: list[str] | None = None,
    *,
    lenient: bool = False,
    **fields: Any,  # noqa: ANN401 - any field
) -> GeneratedImage:
    """One image by the backend; raises its failure."""
    told = [] if notes is None else notes
    asked = GenerateRequest(**{"prompt": "a red star", **fields})
    settled = resolve_request(asked, backend.describe(asked), lenient=lenient, on_note=told.append)
    backend.check(settled)

    def hear(event: object) -> None:
        if isinstance(event, Notice):
            told.append(event.message)

    (outcome,) = backend.run([settled], hear, Flag())
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def as_t2i(server: FakeImages) -> None:
    """Have the server be t2i's own, which says of every image what made it."""
    server.owner, server.models, server.facts = "t2i", ["postcard"], dict(FACTS)

    def echo(body: Body) -> Body:
        width, height = map(int, body["size"].split("x"))
        made = {
            "prompt": body["prompt"],
            "negative_prompt": body.get("negative_prompt"),
            "model": "postcard",
            "revision": None,
            "seed": body["seed"],
            "steps": body["num_inference_steps"],
            "guidance_scale": body["guidance_scale"],
            "width": width,
            "height": height,
            "scheduler": body.get("scheduler"),
        }
        lock = {
            "backend": "local",
            "model": "postcard",
            "device": "cuda:0",
            "dtype": "float16",
            "measures": ["vae-tiling"],
            "libraries": {"torch": "2.13.0"},
        }
        return {"request": made, "lock": lock, "seconds": 0.25}

    server.echo = echo


def test_a_plain_server_gets_the_prompt_and_the_size(server: FakeImages) -> None:
    made = make(backend(server), width=32, height=24)
    assert server.asked == [
        {
            "model": "painter",
            "prompt": "a red star",
            "n": 1,
            "output_format": "png",
            "size": "32x24",
        }
    ]
    assert made.image.size == (32, 24)
    assert made.image.mode == "RGB"
    assert made.info.backend == "http"
    assert made.info.endpoint == server.url
    assert made.info.model == "painter"
    assert made.info.seed_confirmed is False
    assert made.round_trip is not None
    assert made.seconds == made.round_trip
    # What nobody set is not known, and said to be so.
    assert (made.request.steps, made.request.guidance_scale) == (None, None)


def test_extras_are_sent_to_a_t2i_server(server: FakeImages) -> None:
    make(backend(server, dialect="t2i"), extras=(("clip_skip", 1), ("sigmas", (1.0, 0.5))))
    assert server.asked[0]["extras"] == {"clip_skip": 1, "sigmas": [1.0, 0.5]}


SHARED = {
    "negative_prompt": "rain",
    "seed": 7,
    "num_inference_steps": 9,
    "guidance_scale": 2.5,
    "size": "32x32",
}


@pytest.mark.parametrize(
    ("dialect", "sent"),
    [
        ("t2i", {**SHARED, "scheduler": "euler", "response_format": "b64_json"}),
        ("sglang", {**SHARED, "response_format": "b64_json"}),
        ("vllm", {**SHARED, "response_format": "b64_json"}),
        ("localai", {"step": 9, "size": "32x32", "response_format": "b64_json"}),
        ("openai", {"size": "32x32", "output_format": "png"}),
    ],
)
def test_each_dialect_is_sent_what_it_takes(server: FakeImages, dialect: str, sent: Body) -> None:
    notes: list[str] = []
    make(
        backend(server, dialect=dialect),
        notes,
        lenient=True,
        **{"negative_prompt": "rain", "seed": 7, "steps": 9, "guidance_scale": 2.5},
        **{"width": 32, "height": 32, "scheduler": "euler"},
    )
    assert server.asked == [{"model": "painter", "prompt": "a red star", "n": 1, **sent}]
    left_out = 7 - len(sent)
    assert len(notes) == left_out
    assert all("takes no" in note and note.endswith("It is left out.") for note in notes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("seed", 1), ("steps", 5), ("guidance_scale", 3.0), ("negative_prompt", "x")),
        *(("scheduler", "euler"), ("revision", "main")),
    ],
)
def test_a_field_that_the_server_does_not_know_is_an_error(
    server: FakeImages,
    field: str,
    value: Any,  # noqa: ANN401
) -> None:
    with pytest.raises(InputError, match=rf"takes no {field.replace('_', ' ')}\.") as caught:
        make(backend(server), **{field: value})
    assert caught.value.field == field
    assert caught.value.hint == "--lenient goes on without it."
    assert server.asked == []


@pytest.mark.parametrize("owner", ["t2i", "sglang", "vllm", "organization"])
def test_the_dialect_is_found_by_the_owner_of_the_models(server: FakeImages, owner: str) -> None:
    server.owner, server.facts = owner, {**FACTS, "name": "painter"} if owner == "t2i" else None
    chosen = backend(server)
    asked = GenerateRequest(prompt="x")
    told = chosen.estimate(resolve_request(asked, chosen.describe(asked)))
    assert told["dialect"] == {"organization": "openai"}.get(owner, owner)
    assert ("/t2i/v1/model" in server.paths) == (owner == "t2i")


def test_a_known_model_has_its_own_settings_sent(server: FakeImages) -> None:
    server.owner, server.models = "vllm", ["Qwen/Qwen-Image"]
    made = make(backend(server), model="qwen-image", width=64, height=64)
    (sent,) = server.asked
    assert sent["num_inference_steps"] == 50
    assert sent["true_cfg_scale"] == 4.0
    assert "guidance_scale" not in sent
    assert sent["model"] == made.request.model == "Qwen/Qwen-Image"


def test_a_server_of_t2i_settles_and_confirms(server: FakeImages) -> None:
    as_t2i(server)
    made = make(backend(server), seed=42, negative_prompt="rain")
    local = resolve_request(
        GenerateRequest(prompt="a red star", model="postcard", seed=42, negative_prompt="rain"),
        backends.chosen().describe(GenerateRequest(prompt="x", model="postcard")),
    )
    assert made.request.to_json() == local.to_json()
    assert made.info.seed_confirmed is True
    assert (made.info.backend, made.info.device) == ("http", "cuda:0")
    assert made.info.measures == ("vae-tiling",)
    assert made.info.libraries == {"torch": "2.13.0"}
    assert made.seconds == 0.25
    with pytest.raises(InputError, match="width 30 is not a multiple of 8"):
        make(backend(server), width=30)


def test_a_server_that_makes_something_else_is_told_of(server: FakeImages) -> None:
    as_t2i(server)
    echo = server.echo
    assert echo
    server.echo = lambda body: echo(body | {"num_inference_steps": 4})
    with pytest.raises(RemoteError, match="with steps 4, not 20"):
        make(backend(server))
    server.echo = lambda body: echo(body | {"seed": 1})
    assert make(backend(server), seed=2).info.seed_confirmed is False
    notes: list[str] = []
    server.echo = None
    server.faults = [Fault(image=server.picture({"size": "64x64"}))]
    sentence = "The server makes 64x64 where 128x128 is asked for."
    made = make(backend(server), notes)
    assert notes == [sentence]
    assert (made.request.width, made.request.height) == made.image.size == (64, 64)
    server.faults = [Fault(image=server.picture({"size": "64x64"}))]
    with pytest.raises(RemoteError, match=sentence) as caught:
        make(backend(server), width=128)
    assert caught.value.hint == "Ask for 64x64, or leave the size out."


def test_a_server_that_makes_more_than_one_is_told_of(server: FakeImages) -> None:
    notes: list[str] = []
    pictures = [{"b64_json": server.picture({"size": size})} for size in ("16x16", "8x8")]
    server.faults = [Fault(raw=json.dumps({"data": pictures}).encode())]
    made = make(backend(server), notes)
    assert notes == [
        "The server answers with 2 images where one is asked for: the first is kept, 1 not."
    ]
    assert made.image.size == (16, 16)


def test_the_model_to_use(server: FakeImages) -> None:
    server.models = ["a", "b", "stabilityai/stable-diffusion-xl-base-1.0"]
    with pytest.raises(InputError, match="which model to use: a, b, stabilityai") as several:
        make(backend(server))
    assert several.value.hint == "-m names one."
    with pytest.raises(ModelError, match="does not have c; it has a, b,"):
        make(backend(server), model="c")
    assert make(backend(server), model="b").info.model == "b"
    assert make(backend(server), model="sdxl").request.steps is None
    assert server.asked[-1]["model"] == "stabilityai/stable-diffusion-xl-base-1.0"
    server.models = None
    with pytest.raises(InputError, match="which model to use"):
        make(backend(server))
    assert make(backend(server), model="anything").info.model == "anything"


@pytest.mark.parametrize(
    ("fault", "kind", "sentence", "tries"),
    [
        (Fault(status=400, body=error("No such size.", param="size")), InputError, "No such", 1),
        (Fault(status=422, body={"detail": "Too long"}), InputError, r"request: Too long\.", 1),
        (Fault(status=401, body=error("No.")), AccessError, "refuses the API key", 1),
        (Fault(status=403, body=error("No.")), AccessError, "does not allow this", 1),
        (Fault(status=404, body=error("No such model.")), ModelError, "not have the model", 1),
        (Fault(status=404, body="?"), RemoteError, "no images API at http", 1),
        (
            Fault(status=400, body=error("x", "moderation_blocked")),
            ContentFilteredError,
            "withheld",
            1,
        ),
        (Fault(status=500, body=error("Oh.")), RemoteError, r"with status 500\. Oh\.", 1),
        (Fault(status=504), TimedOutError, "gave up", 1),
        (Fault(status=307, headers={"Location": "http://x/"}), RemoteError, "another address", 1),
        (Fault(status=429, body=error("x", "insufficient_quota")), QuotaError, "no quota", 1),
        (Fault(status=403, body={"error": {"type": "insufficient_quota"}}), QuotaError, "quota", 1),
        (Fault(status=400, body=error("x", "billing_hard_limit_reached")), QuotaError, "quota", 1),
        (Fault(status=402, body={"message": "Pay."}), QuotaError, r"credit left\. Pay\.", 1),
        (ok(error("No.", "insufficient_quota")), QuotaError, r"credit left\. No\.", 1),
        (ok(error("Slow.", "rate_limit_exceeded")), QuotaError, "too many requests", 3),
        (ok(error("Wet.", "400", "steps")), InputError, r"refuses the request: Wet\.", 1),
        (ok(error("No sun.", "moderation_blocked")), ContentFilteredError, "No sun", 1),
        (ok({"error": "CUDA"}), RemoteError, r"/v1 failed\. CUDA\.", 1),
        (ok({"data": [{"error": {"message": "Bad."}}]}), RemoteError, r"failed\. Bad\.", 1),
        (ok({"data": [], "message": "Bad."}), RemoteError, r"failed\. Bad\.", 1),
        (ok({"data": None, "detail": "Bad."}), RemoteError, r"failed\. Bad\.", 1),
        (
            Fault(status=503, body={"code": 503, "type": "InternalServerException"}),
            RemoteError,
            "overloaded or not ready",
            1,
        ),
        (Fault(status=503, body=error("CUDA", "out_of_memory")), OutOfMemoryError, "CUDA", 1),
        (Fault(status=429, body=error("Slow down.")), QuotaError, "too many requests", 3),
        (
            Fault(status=429, body=error("Slow."), headers={"Retry-After": "1"}),
            QuotaError,
            "too many requests",
            3,
        ),
        (Fault(status=503, body=error("Busy.")), RemoteError, "overloaded or not ready", 3),
        (Fault(status=503, body=error("Bye.", "terminated")), RemoteError, r"ready\. Bye\.", 3),
        (Fault(status=502, body="<html>"), RemoteError, r"status 502\.$", 3),
        (Fault(status=502, page=PAGE), RemoteError, r"status 502\. 502 Bad & ugly\.$", 3),
        (Fault(status=500, page=b"It\nbroke"), RemoteError, r"status 500\. It broke\.$", 1),
        (Fault(status=500, page=b"\0\x01"), RemoteError, r"status 500\.$", 1),
        (Fault(status=500, body={"message": "Oh"}), RemoteError, r"status 500\. Oh\.$", 1),
        (Fault(status=500, body={"errors": ["Oh"]}), RemoteError, r"status 500\. Oh\.$", 1),
        (
            Fault(status=500, body={"error": "Oops", "detail": "Oh", "errors": ""}),
            RemoteError,
            r"status 500\. Oops: Oh\.$",
            1,
        ),
        (
            Fault(status=422, body={"detail": [{"loc": ["body", "n"], "msg": "Too long"}]}),
            InputError,
            r"request: Too long\.",
            1,
        ),
        (Fault(cut=True), UnreachableError, r"connection to 127.0.0.1:\d+ broke", 3),
        (Fault(stall=0.05), UnreachableError, r"connection to 127.0.0.1:\d+ broke", 3),
        (Fault(image="iVBORw0KGgo"), RemoteError, "cut off", 1),
        (Fault(image=base64.b64encode(b"hello").decode()), RemoteError, "no PNG, JPEG", 1),
        (Fault(entry={}), RemoteError, "holds no image", 1),
        (Fault(raw=b'{"data": []}'), RemoteError, "holds no image: its list", 1),
        (Fault(entry={"url": "ftp://x/a.png"}), RemoteError, "is no address", 1),
        (Fault(entry={"url": "http://[x"}), RemoteError, "is no address", 1),
        (Fault(raw=b"<html>"), RemoteError, "no JSON", 1),
    ],
)
@pytest.mark.usefixtures("hasty")
def test_each_failure_is_one_sentence_and_tried_again_if_that_helps(
    server: FakeImages, fault: Fault, kind: type[T2IError], sentence: str, tries: int
) -> None:
    fault.times = 9
    server.faults = [fault]
    with pytest.raises(kind, match=sentence) as caught:
        make(backend(server, retries=2))
    fault.times = 9
    assert type(caught.value) is kind
    assert "\n" not in caught.value.message
    assert caught.value.hint or kind is OutOfMemoryError
    assert len(server.asked) == tries
    if tries > 1:
        assert "tried 3 times" in str(caught.value.hint)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault", [Fault(status=429), Fault(status=503), Fault(cut=True)])
def test_what_passes_is_got_over(server: FakeImages, fault: Fault) -> None:
    server.faults = [fault]
    fault.times = 2
    make(backend(server))
    fault.times = 1
    assert len(server.asked) == 3


@pytest.mark.usefixtures("hasty")
def test_the_first_look_waits_for_a_server_that_loads(
    server: FakeImages, capsys: pytest.CaptureFixture[str]
) -> None:
    server.look_faults = [Fault(status=503, body={"error": {"message": "Loading model"}}, times=9)]
    make(backend(server, retries=0))
    assert server.paths.count("/v1/models") == 10
    told = capsys.readouterr().err
    assert told == (
        f"The server at {server.url} is overloaded or not ready. Loading model. "
        "It is waited for, up to 600 s.\n"
    )
    # What is sent to a server that loads waits likewise, and is told.
    notes: list[str] = []
    server.faults = [Fault(status=503, body={"error": "Model is currently loading"}, times=9)]
    make(backend(server, retries=0), notes)
    assert len(server.asked) == 11
    assert [note.partition("ready.")[2] for note in notes] == [
        " Model is currently loading. It is waited for."
    ]
    # A failure to load is none.
    server.faults = [Fault(status=503, body={"error": "Loading model failed"}, times=9)]
    with pytest.raises(RemoteError, match="Loading model failed"):
        make(backend(server, retries=1))
    assert len(server.asked) == 13


def test_the_first_look_ends_with_the_timeout(server: FakeImages) -> None:
    server.look_faults = [Fault(status=503, body="", times=99)]
    started = time.monotonic()
    with pytest.raises(RemoteError, match="overloaded or not ready") as caught:
        make(backend(server, timeout=1.5))
    assert time.monotonic() - started < 5
    tries = server.paths.count("/v1/models")
    count = "once" if tries == 1 else f"{tries} times"
    assert caught.value.hint == (
        f"Look into the server's log. It was tried {count}; --timeout sets the patience."
    )


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("retries", [0, 3])
@pytest.mark.parametrize("fault", [Fault(status=502), Fault(cut=True), Fault(status=429)])
def test_the_first_look_is_repeated_as_the_options_say(
    server: FakeImages, fault: Fault, retries: int
) -> None:
    server.look_faults = [replace(fault, times=99)]
    with pytest.raises(T2IError) as caught:
        make(backend(server, retries=retries))
    assert server.paths.count("/v1/models") == retries + 1
    assert ("tried 4 times" if retries else "tried once") in str(caught.value.hint)
    assert server.url.split("/")[2] in caught.value.message
    server.look_faults = [replace(fault, times=3)]
    make(backend(server, retries=3))


@pytest.mark.usefixtures("hasty")
def test_a_timeout_after_tries_counts_them(server: FakeImages) -> None:
    server.faults = [Fault(status=502, times=2), Fault(stall=60)]
    with pytest.raises(TimedOutError) as caught:
        make(backend(server, timeout=0.7))
    assert "It was tried 3 times in 0.7 s" in str(caught.value.hint)


def test_a_server_that_is_silent_is_told_of(
    server: FakeImages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http_backend, "SILENT_SECONDS", 0.1)
    server.look_faults = [Fault(stall=60)]
    with pytest.raises(TimedOutError, match="did not answer within"):
        make(backend(server, timeout=0.6))
    assert f"{server.url} has not answered yet. It is waited for" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["", "/", "/v1/images/generations", "/v1/models"])
def test_an_address_beside_the_api_is_used_and_told(
    server: FakeImages, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    as_t2i(server)
    given = server.url.removesuffix("/v1") + ending
    made = make(backend(replace(server, url=given)))
    assert made.info.endpoint == server.url
    assert made.request.steps == 20, "its description is found, too"
    told = capsys.readouterr().err
    assert told == f"The images API is at {server.url}, which is used; --url names it.\n"
    # A page at every address is no list of models.
    server.files["/models"] = PAGE
    make(backend(replace(server, url=server.url.removesuffix("/v1"))))
    server.models = None
    with pytest.raises(RemoteError, match="it is no JSON"):
        make(backend(replace(server, url=server.url.removesuffix("/v1"))), model="x")


def test_a_list_of_models_that_is_an_error_with_status_200(server: FakeImages) -> None:
    server.look_faults = [ok(error("No such path.", "404"))]
    make(backend(server), model="painter")
    server.look_faults = [ok(error("Who?", "invalid_api_key"))]
    with pytest.raises(AccessError, match="Who"):
        make(backend(server))
    server.look_faults = [ok({"error": "Oh"})]
    with pytest.raises(RemoteError, match=r"failed\. Oh\."):
        make(backend(server), model="painter")


def test_the_field_at_fault_has_our_name(server: FakeImages) -> None:
    server.faults = [Fault(status=400, body=error("Too many.", param="num_inference_steps"))]
    with pytest.raises(InputError) as caught:
        make(backend(server, dialect="vllm"), steps=900)
    assert caught.value.field == "steps"


def test_the_timeout_ends_a_stall(server: FakeImages) -> None:
    server.faults = [Fault(stall=60)]
    with pytest.raises(TimedOutError, match=r"did not answer within .* s"):
        make(backend(server, timeout=0.5))
    assert len(server.asked) == 1


@pytest.mark.usefixtures("hasty")
def test_no_server(server: FakeImages) -> None:
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9 cannot be reached") as refused:
        make(backend(replace(server, url="http://127.0.0.1:9/v1")))
    assert "tried 6 times" in str(refused.value.hint)
    with pytest.raises(RemoteError) as once:
        make(backend(replace(server, url="http://127.0.0.1:9/v1"), retries=0))
    assert "tried once" in str(once.value.hint)
    with pytest.raises(InputError, match="no server to ask"):
        backends.chosen("http")
    for url in ("localhost:80", "ftp://x/v1", "http://", "http://x:y/"):
        with pytest.raises(InputError, match="not of the form"):
            backends.chosen("http", url=url)
    for url in (f"http://me:{KEY}@x/v1", f"http://x/v1?key={KEY}"):
        with pytest.raises(InputError, match="holds no name") as caught:
            backends.chosen("http", url=url)
        assert KEY not in caught.value.message


def test_an_image_behind_a_link_is_fetched_without_the_key(
    server: FakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2I_HTTP_API_KEY", KEY)
    server.key = KEY
    server.files["/file?sig=secret"] = base64.b64decode(server.picture({"size": "8x8"}))
    link = server.url.removesuffix("/v1") + "/file?sig=secret"
    server.faults = [Fault(entry={"url": link}), Fault(entry={"url": link + "x"})]
    assert make(backend(server)).image.size == (8, 8)
    assert "Authorization" not in server.headers[-1]
    with pytest.raises(RemoteError, match="link to the image fails with 404") as caught:
        make(backend(server))
    assert "secret" not in f"{caught.value.message}{caught.value.hint}"
    # Refused without the key: the server itself gets it, another host does not.
    assert "Authorization" not in server.headers[-2]
    assert "Authorization" in server.headers[-1]
    with running_images() as other:
        other.key = "another"
        server.faults = [Fault(entry={"url": other.url + "/no.png"})]
        with pytest.raises(RemoteError, match="link to the image fails with 401"):
            make(backend(server))
        assert [headers.get("Authorization") for headers in other.headers] == [None]


def test_images_that_are_sent_in_other_forms(server: FakeImages) -> None:
    encoded = server.picture({"size": "8x8"})
    file = base64.b64decode(encoded)
    server.files |= {"/v1/images/a.png": file, "/v1/images/b/a.png": file}
    entries: list[dict[str, object]] = [
        {"b64_json": f"data:image/png;base64,{encoded}"},
        {"b64_json": base64.urlsafe_b64encode(file).decode()},
        {"b64_json": None, "url": f"data:image/png;base64,{encoded}"},
        {"b64_json": "", "url": f"DATA:image/png;name=a.png;base64,{quote(encoded)}"},
        {"url": "data:image/png," + quote(file)},
        {"url": "/v1/images/a.png"},
        {"url": "b/a.png"},
        {"url": f"//{server.url.split('/')[2]}/v1/images/a.png"},
    ]
    for entry in entries:
        server.faults = [Fault(entry=entry)]
        assert make(backend(server)).image.size == (8, 8), entry


def test_which_key_goes_where(
    server: FakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    assert http_options.api_key_for("https://api.openai.com/v1") == "sk-of-openai"
    for url in (server.url, "http://api.openai.com/v1", "https://api.openai.com.evil.org/v1"):
        assert http_options.api_key_for(url) is None
    (tmp_path / "t2i.toml").write_text('http_api_key = "from-file"\n')
    assert http_options.api_key_for(server.url) == "from-file"
    monkeypatch.setenv("T2I_HTTP_API_KEY", KEY)
    assert http_options.api_key_for(server.url) == KEY
    server.key = KEY
    make(backend(server))
    assert {h["Authorization"] for h in server.headers} == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://192.0.2.1:7860/v1", True),
        ("http://images.example.org/v1", True),
        ("https://images.example.org/v1", False),
        ("http://localhost:7860/v1", False),
        ("http://[::1]:7860/v1", False),
    ],
)
def test_a_key_that_others_could_read_is_warned_of(
    url: str, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backends.chosen("http", url=url)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("T2I_HTTP_API_KEY", KEY)
    backends.chosen("http", url=url)
    said = capsys.readouterr().err
    assert ("unencrypted" in said) == warned
    assert KEY not in said


def test_the_key_is_in_no_error(server: FakeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_HTTP_API_KEY", KEY)
    server.key = "another"
    chosen = backend(server)
    with pytest.raises(AccessError, match="refuses the API key") as caught:
        make(chosen)
    assert KEY not in f"{caught.value.message} {caught.value.hint}"
    assert KEY not in repr(vars(chosen))


def batch(
    tmp_path: Path, chosen: Backend, rows: int, **options: object
) -> tuple[T2IError | None, list[dict[str, Any]]]:
    """Run a batch of so many rows; how it ended, and the lines of its manifest."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a star number {n}\n" for n in range(rows)))
    console = Console()
    console.configure(json=True, quiet=True)
    task = BatchConfig(
        source=str(prompts),
        input_format=None,
        folder=tmp_path / "out",
        options=BatchOptions(**options),  # type: ignore[arg-type]
        selection=SelectionOptions(),
    )
    ended = None
    try:
        session.run_batch(task, chosen, console)
    except T2IError as failure:
        ended = failure
    lines = (tmp_path / "out" / MAIN_MANIFEST).read_text().splitlines()[1:]
    return ended, [json.loads(line) for line in lines]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("rows", [100, full(500)])
def test_rows_of_a_server_that_fails_at_random(
    server: FakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.chdir(tmp_path)
    as_t2i(server)
    server.pause = 0.005
    draw = random.Random(5)  # noqa: S311 - a test
    ways = [
        Fault(status=429, body=error("Slow down.")),
        Fault(status=429, body=error("Slow down."), headers={"Retry-After": "0"}),
        Fault(status=503, body=error("Busy.")),
        Fault(cut=True),
    ]
    server.fault = lambda body: draw.choice(ways) if draw.random() < 0.2 else None
    ended, lines = batch(tmp_path, backend(server, concurrency=8, retries=12), rows)
    assert ended is None
    assert Counter(line["status"] for line in lines) == {"done": rows}
    assert sorted(line["index"] for line in lines) == list(range(1, rows + 1))
    assert len({line["id"] for line in lines}) == len({line["sha256"] for line in lines}) == rows
    assert len(list((tmp_path / "out").glob("*.png"))) == rows
    assert 2 <= server.most_in_flight <= 8
    assert len(server.asked) > rows * 1.05
    # How long this machine takes cannot be learnt from another.
    assert not list((tmp_path / "cache").rglob("timings.json"))
    first = min(lines, key=lambda line: int(line["index"]))
    assert first["round_trip_seconds"] >= 0.005
    assert first["seconds"] == 0.25
    assert first["lock"]["endpoint"] == server.url
    record = metadata.read_metadata(tmp_path / "out" / first["file"])
    assert record.request == first["request"]
    assert record.lock == first["lock"]


@pytest.mark.usefixtures("hasty")
def test_a_server_that_is_gone_stops_the_batch_and_the_next_run_goes_on(
    server: FakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = tmp_path / "out" / MAIN_MANIFEST

    def refuse(_body: dict[str, Any]) -> Fault:
        # No sooner than all that was refused before is known: the backend may not run ahead.
        while manifest.read_text().count("\n") < len(server.asked):
            assert not server.closing.wait(0.01)
        return Fault(status=401, body=error("Expired."))

    server.fault = refuse
    ended, lines = batch(tmp_path, backend(server, concurrency=2), 40)
    assert isinstance(ended, T2IError)
    assert {line["status"] for line in lines} == {"failed"}
    # One may be answered while the last of them is looked at, and two are on their way then.
    assert FAILURES_IN_A_ROW <= len(lines) <= FAILURES_IN_A_ROW + 3
    server.fault = lambda body: None
    ended, lines = batch(tmp_path, backend(server, concurrency=2), 40)
    assert ended is None
    assert sum(line["status"] == "done" for line in lines) == 40


def until_in_flight(server: FakeImages, calls: int) -> None:
    """Wait until so many calls are with the server."""
    end = time.monotonic() + 60
    while server.in_flight < calls and time.monotonic() < end:
        time.sleep(0.01)


def test_a_stop_keeps_what_was_sent(server: FakeImages, tmp_path: Path) -> None:
    chosen, stop = backend(server, concurrency=3), StopSignal()
    server.pause = 0.3
    spec = chosen.describe(GenerateRequest(prompt="x"))
    requests: list[ResolvedRequest] = [
        resolve_request(GenerateRequest(prompt=f"star {n}"), spec) for n in range(30)
    ]
    sink = ImageWriter([tmp_path / f"{n}.png" for n in range(30)], "png")
    threading.Thread(
        target=lambda: (until_in_flight(server, 3), stop.request(2)),  # type: ignore[func-returns-value]
    ).start()
    made = [
        outcome
        for group in LocalExecutor(chosen).run(requests, sink.save, lambda event: None, stop)
        for outcome in group
    ]
    assert all(isinstance(outcome, SavedImage) for outcome in made)
    assert sorted(o.index for o in made) == list(range(len(server.asked)))
    assert len(made) <= 6


def test_generate_as_a_process(server: FakeImages, t2i: T2I, tmp_path: Path) -> None:
    as_t2i(server)
    server.key = KEY
    env = {"T2I_HTTP_API_KEY": KEY, "T2I_BACKEND": "http", "T2I_HTTP_URL": server.url}
    done = t2i("generate", "a red star", "-s", "7", "-n", "2", "--json", env=env)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, sorted(done.stdout.splitlines()))
    assert (first["seed"], second["seed"]) == (7, 8)
    assert first["path"].endswith("a-red-star-7.png")
    assert (first["backend"], first["endpoint"]) == ("http", server.url)
    assert first["seed_confirmed"] is True
    assert first["round_trip_seconds"] > 0
    record = metadata.read_metadata(tmp_path / first["path"])
    assert record.request["steps"] == 20
    assert record.lock["endpoint"] == server.url
    everything = done.stdout + done.stderr + str((tmp_path / first["path"]).read_bytes())
    assert KEY not in everything
    dry = t2i("generate", "a red star", "--dry-run", "--json", env=env)
    plan = json.loads(dry.stdout)["plan"]
    assert (plan["backend"], plan["dialect"], plan["concurrency"]) == ("http", "t2i", 4)
    (tmp_path / "two.txt").write_text("a star\na moon\n")
    batched = t2i("batch", "two.txt", "--dry-run", env=env)
    assert f"  on {server.url}: 4 calls at a time" in batched.stdout, batched.stderr
    wrong = t2i("generate", "x", "--device", "cpu", env=env)
    assert wrong.returncode == 2
    assert "--device means nothing to the http backend." in wrong.stderr
    lenient = t2i("generate", "x", "-s1", "--device", "cpu", "--lenient", env=env)
    assert lenient.returncode == 0, lenient.stderr
    assert "warning: --device means nothing to the http backend. It is left out." in lenient.stderr


def test_a_first_look_as_a_process(server: FakeImages, t2i: T2I, tmp_path: Path) -> None:
    root = server.url.removesuffix("/v1")
    server.look_faults = [Fault(status=503, body={"error": {"message": "Loading model"}}, times=2)]
    command = ("generate", "a red star", "-o", "star.png", "--backend", "http", "--url")
    done = t2i(*command, root, "--retries", "0")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "star.png").exists()
    loads, found, *_ = done.stderr.splitlines()
    assert "overloaded or not ready. Loading model. It is waited for, up to 600 s." in loads
    assert found == f"The images API is at {server.url}, which is used; --url names it."
    gone = t2i(*command, "http://127.0.0.1:9/v1", "--retries", "1", "--json")
    assert gone.returncode == 6
    told, answer = gone.stderr.splitlines()
    assert told == "127.0.0.1:9 cannot be reached. It is tried again, once."
    problem = json.loads(answer)["error"]
    assert problem["message"] == "127.0.0.1:9 cannot be reached."
    assert "It was tried 2 times; --retries" in problem["hint"]


def test_ctrl_c_breaks_the_call_off(
    server: FakeImages, t2i_env: dict[str, str], tmp_path: Path
) -> None:
    server.pause = 600
    command = [sys.executable, "-m", "t2i_cli", "generate", "x", "--backend", "http"]
    with subprocess.Popen(
        [*command, "--url", server.url], env=t2i_env, cwd=tmp_path, stderr=subprocess.PIPE
    ) as process:
        while not server.in_flight:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.decode() == "waiting for the server\nerror: Interrupted.\n"
    assert list(tmp_path.glob("*.png")) == []


def test_the_other_way_round(server: FakeImages) -> None:
    for options in ({"url": server.url}, {"endpoint": "1"}, {"retries": 0}, {"serving": "t2i"}):
        with pytest.raises(InputError, match="means nothing to the local backend") as caught:
            backends.chosen("local", **options)
        assert "It is for --backend" in str(caught.value.hint)
    with pytest.raises(InputError, match="--no-safety-checker means"):
        backends.chosen("http", url=server.url, no_safety_checker=True)
    with pytest.raises(InputError, match="--attention-slicing means"):
        backends.chosen("http", url=server.url, attention_slicing=False)
    backend(server, attention_slicing=None, batch_size=1, device=None)


def test_no_heavy_import(server: FakeImages, t2i_env: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys; from t2i_cli.cli.main import _run;"
        f"code = _run(['generate', 'x', '-q', '--backend', 'http', '--url', {server.url!r}]);"
        "heavy = {'torch', 'diffusers', 'transformers', 'google.auth', 'huggingface_hub'};"
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=t2i_env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_calls_run_beside_each_other_and_cancel_frees_the_server(server: FakeImages) -> None:
    chosen, cancel = backend(server), Flag()
    server.pause = 60
    spec = chosen.describe(GenerateRequest(prompt="x"))
    requests = [resolve_request(GenerateRequest(prompt=f"star {n}"), spec) for n in range(9)]
    threading.Thread(
        target=lambda: (until_in_flight(server, 4), cancel.set()),  # type: ignore[func-returns-value]
    ).start()
    assert list(chosen.run(requests, lambda event: None, cancel)) == []
    assert server.most_in_flight == 4
    for thread in threading.enumerate():
        if thread.name == "call":
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def ours(server: FakeImages) -> Iterator[Running]:
    """Our own server over a stub backend, with a key, and room for two jobs."""
    options, limits = ServerOptions(api_key=KEY), ServerLimits(queue=1, max_batch=1)
    with serving(StubBackend(pause=0.02), options=options, limits=limits) as running:
        yield running
        while OPEN:
            OPEN.pop().close()


@pytest.mark.usefixtures("hasty")
def test_our_own_server(ours: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    there = FakeImages(url=f"{ours.url}/v1")
    with pytest.raises(AccessError, match="refuses the API key"):
        make(backend(there))
    monkeypatch.setenv("T2I_HTTP_API_KEY", KEY)
    fields: Any = {"negative_prompt": "rain", "seed": 9, "steps": 5, "guidance_scale": 2.5}
    made = make(backend(there), **fields, width=16, height=16, scheduler="euler")
    assert isinstance(ours.backend, StubBackend)
    (arrived,) = ours.backend.made
    assert arrived.to_json() == made.request.to_json()
    assert (made.info.backend, made.info.endpoint) == ("http", there.url)
    assert (made.info.device, made.info.seed_confirmed) == ("cpu", True)
    assert made.image.tobytes() == painted(0, arrived).image.tobytes()
    with pytest.raises(InputError) as caught:
        make(backend(there), width=16_384, height=16_384)
    assert caught.value.field in {"size", "width"}
    # More calls than it has room for: it answers 429, and is asked again.
    chosen = backend(there, concurrency=8, retries=40)
    spec = chosen.describe(GenerateRequest(prompt="x"))
    requests = [
        resolve_request(GenerateRequest(prompt=f"star {n}", width=16), spec) for n in range(24)
    ]
    found = list(chosen.run(requests, lambda event: None, Flag()))
    assert sorted(o.index for o in found) == list(range(24))
    assert [o for o in found if isinstance(o, Failure)] == []


def test_runs_beside_each_other_end_by_themselves(server: FakeImages) -> None:
    server.pause = 60
    chosen = backend(server, concurrency=3)
    spec = chosen.describe(GenerateRequest(prompt="x"))
    requests = [resolve_request(GenerateRequest(prompt=f"star {n}"), spec) for n in range(5)]
    check_parallel_runs(chosen, requests, lambda: server.in_flight, server.closing.set)


def test_the_lock_has_a_place_for_where_it_was() -> None:
    from t2i_cli.provenance import GenerationInfo

    assert asdict(GenerationInfo(backend="local", model="m"))["endpoint"] is None
