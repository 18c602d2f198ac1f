"""The hf backend against the Hub's router and its providers on loopback, under their real names."""

import json
import re
import time
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from threading import Event as Flag
from threading import Timer
from typing import Any

import httpx2
import pytest
from huggingface_hub import InferenceClient, close_session, constants
from huggingface_hub.inference._providers import (
    PROVIDERS,
    _common,
    hf_inference,
    wavespeed,
    zai_org,
)

from t2i_cli.backend import Backend, Failure, GeneratedImage
from t2i_cli.backends.hf.providers import ARGUMENTS, HONOURED, image_providers
from t2i_cli.backends.hf.transport import is_public_address
from t2i_cli.errors import (
    AccessError,
    ContentFilteredError,
    InputError,
    ModelError,
    QuotaError,
    RemoteError,
    T2IError,
    TimedOutError,
)
from t2i_cli.events import Notice
from t2i_cli.hub.inference_mapping import parse_inference_providers
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.net import retry
from t2i_cli.request import GenerateRequest
from tests import backends
from tests.conftest import T2I
from tests.fakes.inference_providers import (
    FILE_HOSTS,
    MODEL_IDS,
    REPO,
    ROUTER,
    TOKEN,
    FakeProviders,
    Fault,
    mapping_of,
    running_providers,
)
from tests.parallel_runs import check_parallel_runs
from tests.test_serve_process import running

OTHER_TOKEN = TOKEN[::-1].replace("_fh", "_x")


@pytest.fixture
def providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProviders]:
    """The hosts, which this process reaches as well; waits between polls are short."""
    with running_providers(tmp_path) as state:
        for name in ("T2I_HF_PROVIDER", "T2I_HF_BILL_TO", "T2I_BACKEND", "NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "t2i.toml"))
        for name, value in state.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", state.environment["HF_ENDPOINT"])
        pause = retry._pause
        monkeypatch.setattr(retry, "_pause", lambda *told: pause(*told) / 100)
        for module in (wavespeed, zai_org):
            monkeypatch.setattr(module, "_POLLING_INTERVAL", 0.01)
        _common._fetch_inference_provider_mapping.cache_clear()
        hf_inference._check_supported_task.cache_clear()
        close_session()
        yield state
        while OPEN:
            OPEN.pop().close()
        close_session()


OPEN: list[Backend] = []
"""The backends of the test that runs."""


def backend(provider: str | None = None, **options: Any) -> Backend:  # noqa: ANN401 - any option
    """The backend as the command line chooses it."""
    OPEN.append(backends.chosen("hf", provider=provider, **options))
    return OPEN[-1]


def make(
    made_by: Backend,
    notes: list[str] | None = None,
    *,
    lenient: bool = False,
    **fields: Any,  # noqa: ANN401 - any field
) -> GeneratedImage:
    """One image by the backend; raises its failure."""
    told = [] if notes is None else notes
    asked = GenerateRequest(**{"prompt": "a red star", "model": REPO, **fields})
    request = resolve_request(asked, made_by.describe(asked), lenient=lenient, on_note=told.append)
    made_by.check(request)

    def hear(event: object) -> None:
        if isinstance(event, Notice):
            told.append(event.message)

    (outcome,) = made_by.run([request], hear, Flag())
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def test_the_fake_and_the_table_know_every_provider_of_the_library() -> None:
    assert set(image_providers()) == set(HONOURED) == set(MODEL_IDS)
    assert {p for p, tasks in PROVIDERS.items() if "text-to-image" in tasks} == set(HONOURED)
    assert set(ARGUMENTS.values()) <= signature(InferenceClient.text_to_image).parameters.keys()


@pytest.mark.parametrize("provider", sorted(HONOURED))
def test_each_provider_makes_an_image_of_what_it_honours(
    providers: FakeProviders, provider: str
) -> None:
    providers.unready = 2
    values = {
        "negative_prompt": "rain",
        "seed": 7,
        "steps": 9,
        "guidance_scale": 2.5,
        "width": 96,
        "height": 80,
    }
    given: dict[str, Any] = {
        field: value for field, value in values.items() if field in HONOURED[provider]
    }
    made = make(backend(provider), **given)
    (body,) = providers.made
    text = json.dumps(body)
    assert "a red star" in text
    assert ("rain" in text, "2.5" in text) == ("guidance_scale" in given,) * 2
    assert made.image.size == ((96, 80) if "width" in given else providers.size)
    assert made.image.mode == "RGB"
    info = made.info
    assert (info.backend, info.endpoint) == ("hf", f"https://{ROUTER}/{provider}")
    assert (info.model, info.deployed_model) == (REPO, MODEL_IDS[provider])
    assert info.seed_confirmed is False
    assert set(info.libraries) == {"t2i", "huggingface_hub"}
    assert made.request.seed == (7 if "seed" in given else made.request.seed)
    if "seed" in given:
        assert '"seed": 7' in text


@pytest.mark.parametrize("provider", sorted(HONOURED))
def test_the_fake_takes_exactly_what_the_library_builds(
    providers: FakeProviders, provider: str
) -> None:
    """What this test sends past the library's own form is refused with 422."""
    with pytest.raises(InputError) as refused:
        make(backend(provider), extras=(("surprise", 1),))
    assert refused.value.message.startswith(f"{provider} refuses the request:")
    assert not providers.made


@pytest.mark.parametrize("provider", sorted(HONOURED))
def test_what_a_provider_does_not_honour_is_refused_or_told(
    providers: FakeProviders, provider: str
) -> None:
    values: dict[str, Any] = {
        **{"negative_prompt": "rain", "seed": 7, "steps": 9, "guidance_scale": 2.5},
        **{"width": 96, "height": 80, "scheduler": "euler", "revision": "main"},
    }
    refused = [field for field in values if field not in HONOURED[provider]]
    for field in refused:
        with pytest.raises(InputError, match=f"{provider} takes no {field.replace('_', ' ')}"):
            make(backend(provider), **{field: values[field]})
    assert not providers.asked
    notes: list[str] = []
    make(backend(provider), notes, lenient=True, **values)
    assert len([note for note in notes if note.endswith("It is left out.")]) == len(refused)
    assert len(providers.made) == 1


def test_no_default_of_the_catalogue_is_sent(providers: FakeProviders) -> None:
    providers.mapping["fal-ai"]["providerId"] = MODEL_IDS["fal-ai"]
    made = make(backend("fal-ai"), model="flux-schnell", seed=5)
    assert made.info.model == "black-forest-labs/FLUX.1-schnell"
    assert providers.made == [{"prompt": "a red star", "seed": 5}]
    assert (made.request.steps, made.request.guidance_scale) == (None, None)
    assert (made.request.width, made.request.height) == (None, None)


def test_extras_are_parameters_of_the_provider(providers: FakeProviders) -> None:
    make(backend("wavespeed"), extras=(("size", "96*80"),), seed=3)
    assert providers.made == [{"prompt": "a red star", "size": "96*80", "seed": 3}]
    for name in (*ARGUMENTS.values(), "prompt", "model", "num_images", "sync_mode"):
        with pytest.raises(InputError, match=f"--set cannot give {name}"):
            make(backend("wavespeed"), extras=((name, 1),))


def test_auto_is_the_first_of_the_account_that_is_up(providers: FakeProviders) -> None:
    entries = mapping_of("together", "fal-ai", "nscale")
    entries["together"]["status"] = "error"
    providers.mapping = {
        "groq": {"status": "live", "providerId": "x", "task": "text-to-image"},
        "replicate": {"status": "live", "providerId": "x", "task": "text-to-video"},
        **entries,
    }
    notes: list[str] = []
    assert make(backend(), notes).info.endpoint == f"https://{ROUTER}/fal-ai"
    assert any("fal-ai makes the images" in note and "bills your account" in note for note in notes)
    notes.clear()
    assert make(backend("together"), notes).info.endpoint == f"https://{ROUTER}/together"
    assert any("may fail: it failed its last check" in note for note in notes)


def test_a_list_of_providers_is_read_as_well(providers: FakeProviders) -> None:
    providers.mapping = [
        {"provider": name, **entry} for name, entry in mapping_of("nscale").items()
    ]
    assert make(backend()).info.endpoint == f"https://{ROUTER}/nscale"


def test_a_model_that_the_provider_lacks_names_those_that_have_it(
    providers: FakeProviders,
) -> None:
    providers.mapping = mapping_of("fal-ai", "nscale")
    with pytest.raises(ModelError, match="together does not serve .*; fal-ai or nscale does"):
        make(backend("together"))
    providers.mapping = {}
    with pytest.raises(ModelError, match="No provider makes images with"):
        make(backend())
    with pytest.raises(ModelError, match="inside t2i"):
        make(backend(), model="postcard")
    with pytest.raises(InputError, match="does not know which model"):
        backend().describe(GenerateRequest(prompt="x"))
    with pytest.raises(ModelError, match="is unknown"):
        make(backend(), model="nonsense")
    for file in ("ann/dreamy/v1/dreamy.safetensors", "s3://bucket/dreamy.gguf"):
        with pytest.raises(InputError, match=f"{file} is a single file"):
            make(backend(), model=file)
    with pytest.raises(InputError, match="fal is no provider of images"):
        backend("fal")
    assert not providers.asked


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{}x", b'{"inferenceProviderMapping": 3}'),
        *(b'{"inferenceProviderMapping": {"a": 1}}', b'{"inferenceProviderMapping": [null]}'),
        b'{"inferenceProviderMapping": {"a": {"providerId": 1, "task": "t", "status": "live"}}}',
    ],
)
def test_what_the_hub_never_says_is_an_error(body: bytes) -> None:
    with pytest.raises(RemoteError, match="makes no sense"):
        parse_inference_providers(body)


def test_the_plan_needs_no_token(
    providers: FakeProviders, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    planned = backend("nscale", bill_to="acme", concurrency=3)
    asked = GenerateRequest(prompt="x", model=REPO, width=64, height=64)
    request = resolve_request(asked, planned.describe(asked))
    assert planned.estimate(request) == {
        "backend": "hf",
        "url": f"https://{ROUTER}/nscale",
        "provider": "nscale",
        "provider_model": MODEL_IDS["nscale"],
        "billed_to": "the organisation acme",
        "sends": ["prompt", "width", "height"],
        "concurrency": 3,
    }
    price = planned.image_price(request)
    assert price is not None
    assert (price.usd, price.source) == (None, "billed by nscale through Hugging Face")
    with pytest.raises(AccessError, match="no token for Hugging Face"):
        make(planned)
    with pytest.raises(AccessError):
        planned.load(request, lambda _: None)
    # The library would send another token to the provider itself.
    monkeypatch.setenv("HF_TOKEN", "sk-of-another-service")
    close_session()
    with pytest.raises(AccessError, match="begin with hf_"):
        make(planned)
    assert not providers.asked


def test_the_user_s_table_of_prices_is_asked(
    providers: FakeProviders, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = tmp_path / "prices.toml"
    table.write_text(f'[images]\n"{REPO}" = 0.03\n"fal-ai/{REPO}" = 0.025\n', encoding="utf-8")
    monkeypatch.setenv("T2I_IMAGE_PRICES", str(table))
    for provider, usd in (("nscale", 0.03), ("fal-ai", 0.025)):
        planned = backend(provider)
        asked = GenerateRequest(prompt="x", model=REPO)
        price = planned.image_price(resolve_request(asked, planned.describe(asked)))
        assert price is not None
        assert (price.usd, price.source) == (usd, f"table: no date, {table}")
    notes: list[str] = []
    make(backend("nscale"), notes)
    assert notes == ["nscale makes the images, and Hugging Face bills your account for them."]


def test_an_organisation_is_billed(providers: FakeProviders) -> None:
    notes: list[str] = []
    make(backend("together", bill_to="acme"), notes)
    (seen,) = [one for one in providers.seen if one.method == "POST"]
    assert seen.headers["x-hf-bill-to"] == "acme"
    assert any("bills the organisation acme" in note for note in notes)


FAILURES: list[tuple[int, object, type[T2IError], str]] = [
    (401, {"error": "Invalid username or password."}, AccessError, "refuses the token"),
    (
        403,
        {"error": "This authentication method does not have sufficient permissions"},
        AccessError,
        "may not have images made",
    ),
    (403, {"error": "Access to model x is restricted: gated"}, AccessError, "is gated"),
    (
        402,
        {"error": "You have exceeded your monthly included credits for Inference Providers."},
        QuotaError,
        "credits are used up",
    ),
    (429, {"error": {"message": "Insufficient credit"}}, QuotaError, "credits are used up"),
    (404, {"error": "Not Found"}, ModelError, "fal-ai does not serve"),
    (400, {"error": "Model x is not supported by provider fal-ai"}, ModelError, "names hf-inf"),
    (422, {"detail": [{"loc": ["body", "seed"], "msg": "too large"}]}, InputError, "too large"),
    (400, {"error": "Prompt contains NSFW words"}, ContentFilteredError, "withheld"),
    (422, {"detail": "content_policy_violation"}, ContentFilteredError, "withheld"),
    (500, "<html><title>Oh no</title></html>", RemoteError, "failed with status 500. Oh no"),
    (502, {"error": "Bad gateway"}, RemoteError, "502"),
    (504, {"error": "upstream timeout"}, TimedOutError, "gave up"),
    (200, {"error": "CUDA out of memory"}, RemoteError, "made no image of it. CUDA"),
    (200, {"images": []}, RemoteError, "makes no sense to huggingface_hub"),
    (200, {"images": [{"url": 3}]}, RemoteError, "makes no sense to huggingface_hub"),
    (200, {"images": [{"url": "https://["}]}, RemoteError, "none on the internet"),
    (200, [], RemoteError, "no sense"),
    (200, {"code": 402, "message": "no money", "data": None}, QuotaError, "no money"),
    (
        200,
        {"images": [{"url": f"https://{FILE_HOSTS['fal-ai']}/x"}], "has_nsfw_concepts": [True]},
        ContentFilteredError,
        "filter",
    ),
    (
        200,
        {"images": [{"url": f"https://{FILE_HOSTS['fal-ai']}/gone"}]},
        RemoteError,
        "link to the image at .* fails with 404",
    ),
]


@pytest.mark.parametrize(("status", "body", "kind", "says"), FAILURES)
def test_each_failure_is_one_sentence_and_is_not_sent_again(
    providers: FakeProviders, status: int, body: object, kind: type[T2IError], says: str
) -> None:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    providers.faults = [Fault(status=status, raw=raw, times=99)]
    with pytest.raises(kind) as failed:
        make(backend("fal-ai"))
    assert type(failed.value) is kind
    assert re.search(says, failed.value.message), failed.value.message
    assert len(providers.asked) == 1
    assert TOKEN not in f"{failed.value.message}{failed.value.hint}"


def test_a_token_that_an_answer_quotes_is_not_shown(providers: FakeProviders) -> None:
    providers.faults = [Fault(status=400, body={"error": f"Bad token {TOKEN}"})]
    with pytest.raises(InputError) as failed:
        make(backend("together"))
    assert TOKEN not in failed.value.message


@pytest.mark.parametrize(
    ("provider", "answer", "kind"),
    [
        ("replicate", {"status": "failed", "error": "NSFW content detected"}, ContentFilteredError),
        ("replicate", {"status": "failed", "error": "CUDA error", "output": None}, RemoteError),
        ("replicate", {"status": "processing", "output": None, "error": None}, TimedOutError),
        ("wavespeed", {"code": 200, "data": {"status": "created"}}, RemoteError),
        ("zai-org", {"task_status": "FAIL", "id": "1"}, RemoteError),
        ("hf-inference", "this is no image", RemoteError),
        ("together", {"data": [{"b64_json": "AAAA"}]}, RemoteError),
        ("nscale", {"data": [{"b64_json": "!"}]}, RemoteError),
    ],
)
def test_an_answer_without_an_image_is_an_error(
    providers: FakeProviders, provider: str, answer: object, kind: type[T2IError]
) -> None:
    providers.faults = [Fault(raw=json.dumps(answer).encode(), times=99)]
    with pytest.raises(kind) as failed:
        make(backend(provider))
    assert len(providers.asked) == 1
    assert "Traceback" not in failed.value.message
    assert "_io" not in failed.value.message


def test_a_task_that_fails_while_it_is_asked_for_says_why(providers: FakeProviders) -> None:
    data = {"status": "failed", "error": "content flagged as sensitive"}
    providers.faults = [
        Fault(where="GET .*/predictions/", raw=json.dumps({"code": 200, "data": data}).encode())
    ]
    with pytest.raises(ContentFilteredError, match="flagged as sensitive"):
        make(backend("wavespeed"))
    assert len(providers.made) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429, body={"error": "slow down"}, headers={"Retry-After": "0"}, times=2),
        Fault(status=503, body={"error": "busy"}, times=2),
        Fault(
            status=503,
            body={"error": "Model x is currently loading", "estimated_time": 20.0},
            times=2,
        ),
    ],
)
def test_a_submission_that_was_not_taken_is_sent_again(
    providers: FakeProviders, fault: Fault
) -> None:
    providers.faults = [fault]
    notes: list[str] = []
    make(backend("hf-inference"), notes)
    assert (len(providers.asked), len(providers.made)) == (3, 1)
    assert any("It is waited for" in note for note in notes) == ("loading" in str(fault.body))


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(status=status, body={"error": "no"}, times=99) for status in (500, 502, 504)),
        Fault(cut=True, times=99),
    ],
)
def test_a_submission_that_may_have_run_is_not_sent_again(
    providers: FakeProviders, fault: Fault
) -> None:
    providers.faults = [fault]
    with pytest.raises(T2IError) as failed:
        make(backend("hf-inference"))
    assert len(providers.asked) == 1
    assert "be billed all the same" in str(failed.value.hint)


@pytest.mark.parametrize("provider", ["wavespeed", "zai-org"])
def test_a_question_that_fails_is_asked_again(providers: FakeProviders, provider: str) -> None:
    where = f"GET {ROUTER}/"
    providers.unready = 1
    providers.faults = [
        Fault(where=where, status=502, body="no"),
        Fault(where=where, status=429, body={"error": "slow"}),
        Fault(where=where, stall=0.01),
        Fault(where=f"GET {FILE_HOSTS[provider]}", status=503, body="no"),
        Fault(where=f"GET {FILE_HOSTS[provider]}", cut=True),
    ]
    make(backend(provider))
    assert len(providers.asked) == len(providers.made) == 1
    assert all(fault.times == 0 for fault in providers.faults)


def test_a_task_without_end_ends_with_the_time(providers: FakeProviders) -> None:
    providers.unready = 10**9
    with pytest.raises(TimedOutError) as failed:
        make(backend("wavespeed", timeout=0.5))
    assert "be billed all the same" in str(failed.value.hint)
    assert len(providers.asked) == 1


def test_a_question_for_a_task_that_ends_with_the_time_says_that_it_may_be_billed(
    providers: FakeProviders,
) -> None:
    providers.faults = [Fault(where=f"GET {ROUTER}", stall=30, times=9)]
    with pytest.raises(TimedOutError, match=r"did not finish the image within 0\.5 s") as failed:
        make(backend("wavespeed", timeout=0.5))
    assert "be billed all the same" in str(failed.value.hint)
    assert len(providers.asked) == 1


def test_a_silent_provider_ends_with_the_time(providers: FakeProviders) -> None:
    providers.faults = [Fault(stall=30, times=9)]
    began = time.monotonic()
    with pytest.raises(TimedOutError):
        make(backend("together", timeout=0.5))
    assert time.monotonic() - began < 10
    assert len(providers.asked) == 1


def test_cancelling_ends_a_task_that_is_asked_for(providers: FakeProviders) -> None:
    providers.unready = 10**9
    asked = GenerateRequest(prompt="x", model=REPO)
    maker = backend("wavespeed")
    request = resolve_request(asked, maker.describe(asked))
    cancel = Flag()
    Timer(0.3, cancel.set).start()
    assert list(maker.run([request], lambda _: None, cancel)) == []
    time.sleep(0.2)
    count = len(providers.seen)
    time.sleep(0.3)
    assert len(providers.seen) <= count + 1


def test_runs_beside_each_other_end_by_themselves(providers: FakeProviders) -> None:
    providers.pause = 60
    maker = backend("nscale", concurrency=3)
    asked = GenerateRequest(prompt="x", model=REPO)
    request = resolve_request(asked, maker.describe(asked))
    check_parallel_runs(maker, [request] * 5, lambda: providers.in_flight, providers.closing.set)


def test_calls_in_flight_are_bounded_and_slow_down(providers: FakeProviders) -> None:
    providers.pause = 0.05
    maker = backend("nscale", concurrency=3)
    asked = GenerateRequest(prompt="x", model=REPO)
    request = resolve_request(asked, maker.describe(asked))
    assert len(list(maker.run([request] * 9, lambda _: None, Flag()))) == 9
    assert providers.most_in_flight == 3
    assert len(providers.made) == 9
    providers.faults = [Fault(status=429, body={"error": "slow down"}, times=1)]
    list(maker.run([request] * 2, lambda _: None, Flag()))
    assert maker._throttle.limit < 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "link",
    [
        *("http://169.254.169.254/latest/meta-data", "https://127.0.0.1/x", "https://[::1]/x"),
        *("https://localhost/x", "https://2130706433/x", "https://metadata.google.internal/x"),
        *("file:///etc/passwd", "ftp://v3.fal.media/x", "https://router/x", "data:image/png,x"),
    ],
)
def test_an_address_that_is_no_images_is_not_asked(providers: FakeProviders, link: str) -> None:
    providers.link = link
    count = len(providers.seen)
    with pytest.raises(RemoteError):
        make(backend("fal-ai"))
    assert [one.method for one in providers.seen[count:]] == ["GET", "GET", "POST"]


def test_an_image_may_be_elsewhere_but_not_anywhere(providers: FakeProviders) -> None:
    host = FILE_HOSTS["fal-ai"]
    providers.link = f"https://{host}/first"
    elsewhere = {"Location": "/files/1-0"}
    providers.faults = [Fault(where=f"GET {host}/first", status=302, body="", headers=elsewhere)]
    assert make(backend("fal-ai")).image.size == providers.size
    inside = {"Location": "http://169.254.169.254/"}
    providers.faults = [Fault(where=f"GET {host}/first", status=302, body="", headers=inside)]
    with pytest.raises(RemoteError, match=r"gives 169\.254\.169\.254:80 as the address"):
        make(backend("fal-ai"))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("https://v3.fal.media/x", True),
        ("https://8.8.8.8/x", True),
        ("https://[2606:4700::1111]/x", True),
        ("https://fal.media./x", True),
        ("http://v3.fal.media/x", False),
        ("https://user@v3.fal.media/x", False),
        ("https://10.0.0.1/", False),
        ("https://192.168.1.1/", False),
        ("https://100.64.0.1/", False),
        ("https://0.0.0.0/", False),
        ("https://[::ffff:127.0.0.1]/", False),
        ("https://[fe80::1]/", False),
        ("https://224.0.0.1/", False),
        ("https://127.1/", False),
        ("https://0x7f.0.0.1/", False),
        ("https://1.0x7f/", False),
        ("https://printer.local/", False),
        ("https://LOCALHOST/", False),
        ("https://a.localhost/", False),
    ],
)
def test_what_is_an_address_on_the_internet(address: str, public: bool) -> None:
    assert is_public_address(httpx2.URL(address)) is public


def test_another_size_than_asked_for_is_told_and_kept_for_it_is_paid(
    providers: FakeProviders,
) -> None:
    image = providers.picture({}, (32, 32))
    providers.faults = [Fault(raw=image)]
    notes: list[str] = []
    made = make(backend("hf-inference"), notes, width=96, height=80)
    assert any("made 32x32 where 96x80 was asked for" in note for note in notes)
    assert made.image.size == (made.request.width, made.request.height) == (32, 32)
    with pytest.raises(InputError, match="width and height together"):
        make(backend("hf-inference"), width=96)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_other_formats_are_read(providers: FakeProviders, format: str) -> None:
    providers.format = format
    assert make(backend("fal-ai")).image.size == providers.size


@pytest.mark.parametrize("format", ["GIF", "TIFF", "PPM"])
def test_formats_that_no_provider_sends_are_refused(providers: FakeProviders, format: str) -> None:
    """The library opens anything that Pillow reads; t2i's own decoder does not."""
    providers.format = format
    with pytest.raises(RemoteError, match="no PNG, JPEG or WebP"):
        make(backend("hf-inference"))


def test_a_model_of_another_task_is_refused(providers: FakeProviders) -> None:
    providers.pipeline_tag = "text-generation"
    with pytest.raises(ModelError, match="hf-inference makes no images with"):
        make(backend("hf-inference"))
    assert not providers.asked


def test_the_hub_may_fail_before_an_image_is_asked_for(providers: FakeProviders) -> None:
    maker = backend("hf-inference")
    maker.describe(GenerateRequest(prompt="x", model=REPO))
    providers.faults = [Fault(where="GET /api/models/", status=503, body={}, times=2)]
    make(maker)
    assert len(providers.asked) == 1
    assert all(fault.times == 0 for fault in providers.faults)


def test_the_hub_is_asked_once_for_many_images(providers: FakeProviders) -> None:
    maker = backend("hf-inference")
    for _ in range(3):
        make(maker)
    looked = [one for one in providers.seen if one.path.startswith("/api/models/")]
    assert len(looked) <= 2
    assert len(providers.made) == 3


# Whole processes, through the proxy and its certificates.


def test_a_process_makes_an_image(providers: FakeProviders, t2i: T2I, tmp_path: Path) -> None:
    environment = providers.environment
    done = t2i(
        *("generate", "a red star", "--backend", "hf", "--provider", "fal-ai", "-m", REPO),
        *("--seed", "7", "--size", "96x80", "-o", "star.png", "--json"),
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["backend"], record["endpoint"]) == ("hf", f"https://{ROUTER}/fal-ai")
    assert (record["deployed_model"], record["seed_confirmed"]) == (MODEL_IDS["fal-ai"], False)
    assert providers.made == [
        {"prompt": "a red star", "seed": 7, "image_size": {"width": 96, "height": 80}}
    ]
    assert "Hugging Face bills your account" in done.stderr
    assert TOKEN not in (tmp_path / "star.png").read_bytes().decode("latin-1")
    assert TOKEN not in done.stdout + done.stderr


def test_a_batch_is_resumed_and_nothing_is_paid_twice(
    providers: FakeProviders, t2i: T2I, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"star {number}\n" for number in range(5)))
    providers.faults = [Fault(where="POST ", status=500, body={"error": "no"}, times=2)]
    arguments = (
        *("batch", "prompts.txt", "-o", "out", "--backend", "hf", "--provider", "wavespeed"),
        *("-m", REPO, "--seed", "1", "--concurrency", "2", "--yes"),
    )
    first = t2i(*arguments, env=providers.environment)
    assert first.returncode == 8, first.stderr
    assert len(providers.made) == 3
    second = t2i(*arguments, env=providers.environment)
    assert second.returncode == 0, second.stderr
    assert len(providers.made) == 5
    assert len({body["prompt"] for body in providers.made}) == 5
    third = t2i(*arguments, env=providers.environment)
    assert third.returncode == 0, third.stderr
    assert len(providers.made) == 5
    lines = (tmp_path / "out" / "manifest.jsonl").read_text()
    assert TOKEN not in lines
    assert lines.count(f'"https://{ROUTER}/wavespeed"') == 5


def test_a_server_serves_what_a_provider_makes(
    providers: FakeProviders, t2i_env: dict[str, str], tmp_path: Path
) -> None:
    environment = t2i_env | providers.environment
    arguments = ("--backend", "hf", "--provider", "nscale", "-m", REPO, "--port", "0")
    with (
        running(tmp_path, environment, *arguments, device=None) as server,
        server.client() as client,
    ):
        answer = client.post("/predict", json={"prompt": "a star", "seed": 3})
        assert answer.status_code == 400, answer.text
        assert "nscale takes no seed" in answer.text
        answer = client.post("/v1/images/generations", json={"prompt": "a star"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"][0]["b64_json"]
    assert [body["prompt"] for body in providers.made] == ["a star"]


@pytest.mark.parametrize(
    ("environment", "says", "code"),
    [
        ({"HF_TOKEN": OTHER_TOKEN}, "refuses the token", 3),
        ({"HF_TOKEN": ""}, "no token for Hugging Face", 3),
        ({"SSL_CERT_FILE": ""}, "cannot be trusted", 6),
        ({"T2I_HF_PROVIDER": "midjourney"}, "is no provider of images", 2),
        ({"T2I_HF_PROVIDER": "Not A Name"}, "T2I_HF_PROVIDER must be", 2),
    ],
)
def test_a_process_that_may_not_says_so(
    providers: FakeProviders, t2i: T2I, environment: dict[str, str], says: str, code: int
) -> None:
    done = t2i(
        *("generate", "x", "--backend", "hf", "-m", REPO, "-o", "x.png"),
        env=providers.environment | environment,
    )
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    for token in (TOKEN, OTHER_TOKEN):
        assert token not in done.stderr
    assert not providers.made
