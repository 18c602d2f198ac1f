"""The gemini backend against generateContent on loopback: what is sent, read, retried and told."""

import io
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from threading import Event as Flag
from typing import Any
from unittest import mock

import httpx2
import pytest
from PIL import Image

from t2i_cli.backend import Backend, Failure, GeneratedImage
from t2i_cli.backends.gemini import answers, image_models
from t2i_cli.backends.gemini.options import model_url
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
from t2i_cli.models.image_prices import built_in_table
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.net import google_credentials, retry
from t2i_cli.output import metadata
from t2i_cli.request import GenerateRequest, ResolvedRequest, parse_size
from t2i_cli.request_extras import parse_extras
from t2i_cli.request_fields import FIELDS, OPTIONAL_FIELDS
from t2i_cli.settings import defaults
from t2i_cli.vertex.location import Location
from tests import backends
from tests.conftest import T2I
from tests.fakes import gemini as fake
from tests.fakes.gemini import PROJECT, FakeGemini, Fault, running_gemini
from tests.fakes.google import refusal
from tests.google_tokens import count_an_old_token
from tests.parallel_runs import check_parallel_runs

FLASH, PRO, OLD = "gemini-3.1-flash-image", "gemini-3-pro-image", "gemini-2.5-flash-image"
FUTURE = "gemini-9-future-image"
OPEN: list[Backend] = []
"""The backends of the test that runs."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGemini]:
    """A server, and settings of the test's own; pauses a hundred times as short."""
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "t2i.toml"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pause = retry._pause
    monkeypatch.setattr(retry, "_pause", lambda *told: pause(*told) / 100)
    with running_gemini(tmp_path) as state:
        for name, value in state.environment.items():
            monkeypatch.setenv(name, value)
        yield state
    while OPEN:
        OPEN.pop().close()


def backend(**options: Any) -> Backend:  # noqa: ANN401 - any option
    """The backend as the command line chooses it."""
    OPEN.append(backends.chosen("gemini", **options))
    return OPEN[-1]


def resolved(
    chosen: Backend,
    told: list[str] | None = None,
    *,
    lenient: bool = False,
    size: str | None = None,
    extras: list[str] | None = None,
    **fields: Any,  # noqa: ANN401 - any field
) -> ResolvedRequest:
    """A request that is resolved and checked."""
    if size:
        fields["width"], fields["height"] = parse_size(size)
    if extras:
        fields["extras"] = parse_extras(extras)
    asked = GenerateRequest(**{"prompt": "a red star", **fields})
    note = (told if told is not None else []).append
    found = resolve_request(asked, chosen.describe(asked), lenient=lenient, on_note=note)
    chosen.check(found)
    return found


def make(
    chosen: Backend,
    told: list[str] | None = None,
    **fields: Any,  # noqa: ANN401 - any field
) -> GeneratedImage:
    """One image by the backend; raises its failure."""
    notes = [] if told is None else told

    def hear(event: object) -> None:
        if isinstance(event, Notice):
            notes.append(event.message)

    (outcome,) = chosen.run([resolved(chosen, notes, **fields)], hear, Flag())
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def failure(*faults: Fault, server: FakeGemini, **options: Any) -> T2IError:  # noqa: ANN401
    """The error of an image that the server fails to make."""
    server.faults = list(faults)
    with pytest.raises(T2IError) as caught:
        make(backend(**options))
    return caught.value


# What is sent.


def test_google_genai_and_the_backend_send_the_same(server: FakeGemini) -> None:
    from google.genai import Client, types
    from google.oauth2.credentials import Credentials

    client = Client(
        vertexai=True,
        project=PROJECT,
        location="global",
        credentials=Credentials(token=fake.TOKEN),  # type: ignore[no-untyped-call]
        http_options=types.HttpOptions(base_url=server.url, api_version="v1"),
    )
    config = types.GenerateContentConfig(
        response_modalities=["TEXT", "IMAGE"],
        image_config=types.ImageConfig(
            aspect_ratio="16:9",
            image_size="2K",
            person_generation="ALLOW_ADULT",
            output_mime_type="image/png",
        ),
    )
    answer = client.models.generate_content(model=FLASH, contents="a red star", config=config)
    images = [part.as_image() for part in answer.parts or [] if part.inline_data]
    assert [image.mime_type for image in images if image] == ["image/png"]
    assert answer.response_id == "answer-1"
    people = ["person_generation=ALLOW_ADULT"]
    made = make(backend(), size="2752x1536", extras=people)
    assert made.size == (2752, 1536)
    theirs, ours = server.asked
    assert ours == theirs
    assert server.paths[0] == server.paths[1]
    # The fake refuses as Google does, and the published client understands it.
    from google.genai.errors import ClientError

    with pytest.raises(ClientError, match="aspectRatio 7:5 is not supported"):
        client.models.generate_content(
            model=FLASH,
            contents="a red star",
            config=types.GenerateContentConfig(
                response_modalities=["IMAGE"], image_config=types.ImageConfig(aspect_ratio="7:5")
            ),
        )
    client.close()


@pytest.mark.parametrize("model", [FLASH, PRO, OLD])
def test_the_sizes_of_the_table_are_what_is_made(model: str, server: FakeGemini) -> None:
    words, image_sizes = fake.MODELS[model]
    ratios = dict(zip(words.split()[::2], words.split()[1::2], strict=True))
    known = image_models.IMAGE_MODELS[model]
    assert {ratio: f"{w}x{h}" for ratio, (w, h) in known.ratios.items()} == ratios
    assert known.image_sizes == image_sizes
    for size, (ratio, image_size) in known.sizes().items():
        scale = fake._SCALES[image_size]
        width, height = parse_size(ratios[ratio])
        assert size == (int(width * scale), int(height * scale)), (ratio, image_size)
    made = make(backend(), model=model, size=ratios["21:9"])
    assert f"{made.size[0]}x{made.size[1]}" == ratios["21:9"]
    (asked,) = server.asked
    config = asked["generationConfig"]["imageConfig"]
    assert config["aspectRatio"] == "21:9"
    assert ("imageSize" in config) == bool(image_sizes)


def test_nothing_is_asked_of_an_image_that_the_user_does_not_ask(server: FakeGemini) -> None:
    made = make(backend(concurrency=2))
    assert made.request.width is None
    assert server.asked[0]["generationConfig"] == {
        "responseModalities": ["TEXT", "IMAGE"],
        "imageConfig": {"imageOutputOptions": {"mimeType": "image/png"}},
    }
    assert server.paths == [
        f"/v1/projects/{PROJECT}/locations/global/publishers/google/models/{FLASH}:generateContent"
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "1000x1000"}, "the nearest size that it keeps is 1024x1024"),
        ({"size": "2000x2000"}, "the nearest size that it keeps is 2048x2048"),
        ({"size": "1920x1080"}, "the nearest size that it keeps is 1376x768"),
        ({"size": "4096x4096", "model": OLD}, "the nearest size that it keeps is 1024x1024"),
        ({"width": 1024}, "takes width and height together"),
        ({"size": "1024x1024", "extras": ["image_size=2K"]}, "size is given twice"),
        ({"extras": ["aspect_ratio=7:5"]}, "takes no aspect_ratio '7:5'; it takes 1:1, 2:3"),
        ({"extras": ["aspect_ratio=1:8"], "model": PRO}, "takes no aspect_ratio '1:8'"),
        ({"extras": ["image_size=2k"]}, "takes no image_size '2k'; it takes 512, 1K, 2K, 4K"),
        ({"extras": ["image_size=2K"], "model": OLD}, "takes no image_size; use one of"),
        ({"extras": ["aspect_ration=1:1"]}, "takes no aspect_ration; did you mean aspect_ratio?"),
        ({"extras": ["person_generation=[1,2]"]}, "takes no person_generation"),
        ({"extras": ["image_size=true"], "model": FUTURE}, "takes no image_size 'True'"),
        ({"size": "1024x1024", "model": FUTURE}, "is not known to t2i"),
    ],
)
def test_what_a_model_does_not_make_is_told(
    fields: dict[str, Any], message: str, server: FakeGemini
) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        resolved(backend(), **fields)
    assert server.asked == []


def test_fields_of_other_models_are_refused(server: FakeGemini) -> None:
    values: dict[str, Any] = {
        "negative_prompt": "grey",
        "revision": "main",
        "seed": 7,
        "steps": 20,
        "guidance_scale": 7.5,
        "scheduler": "euler",
        "quantize": "int8",
        "step_cache": 0.1,
    }
    other_types = {name for name in OPTIONAL_FIELDS if FIELDS[name].parse}
    values |= {"guidance_rescale": 0.5, "clip_skip": 2, "prompt_2": "grey"}
    values |= {"prompt_syntax": "a1111"}
    assert values.keys() == set(OPTIONAL_FIELDS) - {"width", "height"} - other_types
    for name, value in values.items():
        with pytest.raises(InputError) as caught:
            resolved(backend(), **{name: value})
        assert caught.value.field == name
        told: list[str] = []
        left = resolved(backend(), told, lenient=True, **{name: value})
        assert name not in left.user_set
        assert told == [f"{caught.value.message} It is left out."]
    assert server.asked == []


def test_an_unknown_model_gets_what_the_user_asks_for(server: FakeGemini) -> None:
    chosen = backend()
    extras = ["aspect_ratio=16:9", "image_size=8K"]
    asked = resolved(chosen, model=FUTURE, extras=extras)
    price = chosen.image_price(asked)
    assert price is not None
    assert price.usd is None
    config = chosen.estimate(asked)["sends"]
    assert config == {"prompt": "a red star", "aspectRatio": "16:9", "imageSize": "8K"}
    make(chosen, model=FUTURE, extras=["aspect_ratio=16:9"])
    assert server.asked[0]["generationConfig"]["imageConfig"]["aspectRatio"] == "16:9"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagen-4.0-generate-001", "Google ended Imagen in August 2026"),
        ("sd15", "'sd15' is no name of a Gemini model"),
        ("gemini-../../x", "is no name of a Gemini model"),
        ("gemini-3.1-flash-image:predict?x=", "is no name of a Gemini model"),
        ("Gemini-3-Pro-Image", "is no name of a Gemini model"),
    ],
)
def test_names_that_are_no_model(name: str, message: str, server: FakeGemini) -> None:
    with pytest.raises(ModelError) as caught:
        resolved(backend(), model=name)
    assert message in caught.value.message
    assert FLASH in str(caught.value.hint)
    assert server.asked == []


def test_the_default_model_and_its_setting(
    server: FakeGemini, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolved(backend()).model == defaults.GEMINI_MODEL in image_models.IMAGE_MODELS
    monkeypatch.setenv("T2I_MODEL", "sd15")  # for this machine
    monkeypatch.setenv("T2I_GEMINI_MODEL", PRO)
    assert resolved(backend()).model == PRO
    assert resolved(backend(), model=OLD).model == OLD


def test_where_it_is_called(server: FakeGemini, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = {
        "global": "https://aiplatform.googleapis.com",
        "us-central1": "https://us-central1-aiplatform.googleapis.com",
        "eu": "https://aiplatform.eu.rep.googleapis.com",
    }
    for region, host in hosts.items():
        url = model_url(Location(project="p", region=region), FLASH)
        assert url == (
            f"{host}/v1/projects/p/locations/{region}/publishers/google/models/{FLASH}"
            ":generateContent"
        )
    # The region of endpoints is none of the models'.
    monkeypatch.setenv("T2I_VERTEX_REGION", "europe-west4")
    make(backend())
    server.regions = frozenset({"us-central1", "europe-west1"})
    make(backend(region="us-central1"))
    monkeypatch.setenv("T2I_GEMINI_REGION", "europe-west1")
    make(backend())
    regions = [path.split("/locations/")[1].split("/")[0] for path in server.paths]
    assert regions == ["global", "us-central1", "europe-west1"]
    with pytest.raises(InputError, match="--region"):
        backend(region="mars")
    with pytest.raises(ModelError, match="is not served to other-1 in us-east4") as caught:
        make(backend(region="us-east4", project="other-1"))
    assert "--region global" in str(caught.value.hint)


def test_the_quota_project_pays_for_the_call(
    server: FakeGemini, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "gallery-billing")
    make(backend())
    assert server.headers[0]["x-goog-user-project"] == "gallery-billing"


def test_options_of_other_backends_are_refused(server: FakeGemini) -> None:
    for options in ({"endpoint": "5"}, {"serving": "t2i"}, {"url": server.url}, {"device": "cpu"}):
        with pytest.raises(InputError, match="means nothing to the gemini backend"):
            backend(**options)
    with pytest.raises(InputError, match="--project means nothing to the http backend") as caught:
        backends.chosen("http", url="http://127.0.0.1:9/v1", project="p")
    assert "vertex or gemini" in str(caught.value.hint)


# What comes of it.


def test_the_record_says_what_made_the_image(server: FakeGemini) -> None:
    made = make(backend(), size="1376x768")
    info = made.info.to_json()
    assert info["backend"] == "gemini"
    assert info["model"] == FLASH
    assert info["seed_confirmed"] is False
    assert info["model_version"] == "gemini-image-2026"
    assert info["response_id"] == "answer-1"
    assert info["tokens"] == {"prompt": 6, "candidates": 1120, "total": 1126}
    assert str(info["endpoint"]).endswith(f"{FLASH}:generateContent")


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_googles_own_file_is_kept(format: str, server: FakeGemini, tmp_path: Path) -> None:
    made = make(backend(format=format), prompt="ein roter Stern, süß", size="512x512")
    (sent,) = server.sent
    data = metadata.image_file_bytes(made, format)  # type: ignore[arg-type]
    (tmp_path / "image").write_bytes(data)
    found = metadata.read_metadata(tmp_path / "image")
    assert found.request["prompt"] == "ein roter Stern, süß"
    assert found.lock["response_id"] == "answer-1"
    assert (found.width, found.height) == (512, 512)
    # The coded picture is the one that Google sent: nothing was encoded a second time.
    picture = sent[sent.index(b"IDAT") :] if format == "png" else sent[20:]
    assert data.endswith(picture)
    with Image.open(io.BytesIO(data)) as ours, Image.open(io.BytesIO(sent)) as theirs:
        assert ours.tobytes() == theirs.tobytes()
        assert "parameters" in ours.info or ours.getexif()
    # Another format is made from the picture.
    other = metadata.image_file_bytes(made, "webp")
    assert other[:4] == b"RIFF"


def test_a_file_that_has_records_of_its_own_is_encoded_anew(server: FakeGemini) -> None:
    exif = Image.Exif()
    exif[0x010E] = "something"
    for data in (fake.drawn((64, 64), "JPEG", exif=exif), fake.drawn((64, 64), "WEBP")):
        answer = fake.image_answer(data, "image/jpeg", 10, 1)
        server.faults = [Fault(answer=answer)]
        made = make(backend())
        assert made.file is None
        assert metadata.image_file_bytes(made, "png")[:4] == b"\x89PNG"


def test_another_size_is_told_and_kept(server: FakeGemini) -> None:
    server.faults = [Fault(answer=fake.image_answer(fake.drawn((1020, 1024)), "image/png", 9, 1))]
    told: list[str] = []
    made = make(backend(), told, size="1024x1024")
    assert made.request.width == 1020
    assert told == [
        "Google made 1020x1024 where 1024x1024 was asked for; the image is billed, and kept."
    ]


def test_of_two_images_the_first_is_kept(server: FakeGemini) -> None:
    first, second, thought = (fake.drawn((16 * n, 16)) for n in (1, 2, 3))
    parts = [
        {"text": "Thinking", "thought": True},
        fake.inline(thought) | {"thought": True},
        fake.inline(first),
        fake.inline(second),
    ]
    server.faults = [Fault(answer={"candidates": [{"content": {"parts": parts}}]})]
    told: list[str] = []
    made = make(backend(), told)
    assert made.size == (16, 16)
    assert told == [
        "Google answers with 2 images where one is asked for: the first is kept, 1 not."
    ]
    assert made.info.tokens is None


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (fake.blocked("PROHIBITED_CONTENT"), ContentFilteredError, "refuses the prompt (PROHIBI"),
        (fake.blocked("JAILBREAK", "No."), ContentFilteredError, "(JAILBREAK). It says: No."),
        *(
            (fake.stopped(reason), ContentFilteredError, f"withheld the image ({reason})")
            for reason in (
                *("SAFETY", "IMAGE_SAFETY", "PROHIBITED_CONTENT", "IMAGE_PROHIBITED_CONTENT"),
                *("RECITATION", "IMAGE_RECITATION", "BLOCKLIST", "SPII", "MODEL_ARMOR"),
            )
        ),
        (
            fake.stopped("IMAGE_SAFETY", finishMessage="Unsafe"),
            ContentFilteredError,
            "It says: Unsafe.",
        ),
        (fake.stopped("MAX_TOKENS"), RemoteError, "used up its tokens"),
        (fake.stopped("NO_IMAGE"), RemoteError, "made no image (NO_IMAGE)"),
        (fake.stopped("OTHER", {"text": "Sorry"}), RemoteError, "(OTHER). It says: Sorry."),
        (
            fake.stopped("STOP", {"text": "I would rather not."}),
            RemoteError,
            "in words, without an image. It says: I would rather not.",
        ),
        (
            fake.stopped("STOP", {"text": "Bearer ya29.secret \x1b[31m" + "x" * 999}),
            RemoteError,
            "Bearer …",
        ),
        (fake.stopped("STOP"), RemoteError, "holds no image"),
        (Fault(answer={}), RemoteError, "holds no image"),
        (Fault(answer=[]), RemoteError, "makes no sense"),
        (Fault(raw=b"<html>"), RemoteError, "no JSON"),
        (fake.stopped("STOP", fake.inline("not base64!")), RemoteError, "no base64"),
        (fake.stopped("STOP", fake.inline("iVBORw0KGgoAAAAN")), RemoteError, "cut off or damaged"),
        (fake.stopped("STOP", fake.inline(b"hello, world")), RemoteError, "no PNG, JPEG or WebP"),
        (Fault(status=400, body=refusal(400, "INVALID_ARGUMENT", "Bad.")), InputError, "Bad."),
        (
            Fault(status=400, body=refusal(400, "FAILED_PRECONDITION", "Billing is off.")),
            RemoteError,
            "Billing is off.",
        ),
        (
            Fault(
                status=403,
                body=refusal(
                    403, "PERMISSION_DENIED", "Permission 'aiplatform.endpoints.predict' denied"
                ),
            ),
            AccessError,
            "aiplatform.endpoints.predict",
        ),
        (Fault(status=401, page=b"no"), AccessError, "refuses these credentials"),
        (Fault(status=404, page=b"nothing here"), ModelError, "nothing here"),
        (Fault(status=302, page=b""), RemoteError, "another address"),
        (Fault(status=504, page=b"slow"), TimedOutError, "gave up on the image. slow."),
    ],
)
def test_answers_without_an_image(
    fault: Fault, kind: type[T2IError], message: str, server: FakeGemini
) -> None:
    error = failure(fault, server=server)
    assert isinstance(error, kind)
    assert message in error.message, error.message
    assert "\x1b" not in error.message
    assert len(error.message) < 500
    # Nothing of this is billed twice.
    assert len(server.asked) == 1


@pytest.mark.parametrize("fault", [Fault(cut=True), Fault(stall=0.05)])
def test_a_call_that_may_have_run_is_not_sent_again(fault: Fault, server: FakeGemini) -> None:
    error = failure(fault, server=server)
    assert isinstance(error, RemoteError)
    assert "broke before the answer" in error.message
    assert "billed" in str(error.hint)
    assert len(server.asked) == 1


def test_the_time_limit_ends_a_call_that_is_not_sent_again(server: FakeGemini) -> None:
    error = failure(Fault(stall=30), server=server, timeout=0.3)
    assert isinstance(error, TimedOutError)
    assert "--timeout allows more" in str(error.hint)
    assert "billed" in str(error.hint)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "fault",
    [
        fake.quota(times=2, after="1"),
        Fault(status=429, page=b"Resource exhausted.", times=2),
        fake.overloaded(times=2),
        Fault(status=500, body=refusal(500, "INTERNAL", "Internal error."), times=2),
        Fault(status=502, page=b"<html><title>Bad gateway</title>", times=2),
    ],
)
def test_answers_that_are_not_billed_are_asked_for_again(fault: Fault, server: FakeGemini) -> None:
    server.faults = [fault]
    assert make(backend()).info.response_id == "answer-3"


def test_retries_end(server: FakeGemini) -> None:
    error = failure(fake.quota(times=9), server=server, retries=1)
    assert isinstance(error, QuotaError)
    assert "Resource exhausted. Please try again later." in error.message
    assert "It was tried 2 times" in str(error.hint)
    assert len(server.asked) == 2


def test_a_server_that_cannot_be_reached_is_tried_again(
    server: FakeGemini, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = backend(api_endpoint="http://127.0.0.1:9", retries=2)
    with pytest.raises(RemoteError, match="cannot be reached") as caught:
        make(chosen)
    assert "3 times" in str(caught.value.hint)


def test_several_images_are_made_at_a_time(server: FakeGemini) -> None:
    server.pause = 0.05
    chosen = backend(concurrency=3)
    requests = [resolved(chosen, prompt=f"star {n}", size="512x512") for n in range(9)]
    server.faults = [fake.quota()]
    outcomes = list(chosen.run(requests, lambda _: None, Flag()))
    assert sorted(one.index for one in outcomes) == list(range(9))
    assert all(isinstance(one, GeneratedImage) for one in outcomes)
    assert server.most_in_flight <= 3
    assert len(server.asked) == 10  # one was refused for the quota


def test_runs_beside_each_other_end_by_themselves(server: FakeGemini) -> None:
    server.pause = 60
    chosen = backend(concurrency=3)
    requests = [resolved(chosen, prompt=f"star {n}", size="512x512") for n in range(5)]
    check_parallel_runs(chosen, requests, lambda: server.in_flight, server.closing.set)


def test_a_cancelled_run_ends_soon(server: FakeGemini) -> None:
    server.pause = 30
    chosen, cancel = backend(), Flag()
    requests = [resolved(chosen) for _ in range(3)]
    threading.Timer(0.3, cancel.set).start()
    assert list(chosen.run(requests, lambda _: None, cancel)) == []


@pytest.mark.parametrize("times", [1, 9])
def test_a_token_that_is_refused_is_renewed_once(
    server: FakeGemini, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    count_an_old_token(monkeypatch)
    renew = mock.Mock(wraps=google_credentials.refresh_token)
    monkeypatch.setattr(google_credentials, "refresh_token", renew)
    server.faults = [Fault(status=401, page=b"no", times=times)]
    if times == 1:
        make(backend())
    else:
        with pytest.raises(AccessError, match="refuses these credentials"):
            make(backend())
    assert renew.call_count == 2
    assert times - server.faults[0].times == min(times, 2)


def test_refused_credentials_end_a_run_before_it_begins(
    server: FakeGemini, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    chosen = backend()
    asked = resolved(chosen)
    with pytest.raises(AccessError):
        chosen.load(asked, lambda _: None)
    # What a model takes, and what it costs, is known without an account.
    price = chosen.image_price(asked)
    assert price is not None
    assert price.usd == 0.067


@pytest.mark.parametrize(
    ("fields", "usd"),
    [
        ({}, 0.067),
        ({"size": "512x512"}, 0.045),
        ({"extras": ["image_size=4K"]}, 0.151),
        ({"extras": ["image_size=512"]}, 0.045),
        ({"model": PRO, "size": "4096x4096"}, 0.24),
        ({"model": OLD, "size": "1344x768"}, 0.039),
        ({"model": FUTURE}, None),
    ],
)
def test_the_price_is_that_of_the_size(
    fields: dict[str, Any], usd: float | None, server: FakeGemini
) -> None:
    chosen = backend()
    price = chosen.image_price(resolved(chosen, **fields))
    assert price is not None
    assert price.usd == usd
    assert "November 2026" in price.source


def test_the_page_names_the_models_their_sizes_and_prices() -> None:
    page = (Path(__file__).parent.parent / "docs" / "gemini.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `gemini-")}
    assert list(rows) == list(image_models.IMAGE_MODELS)
    for name, prices in built_in_table("gemini").images.items():
        assert isinstance(prices, dict)
        for usd in prices.values():
            assert f"{usd:.3f}" in rows[name] or f"{usd:.2f}" in rows[name]
    for name in (FLASH, OLD):
        for width, height in image_models.IMAGE_MODELS[name].ratios.values():
            assert f"{width}x{height}" in rows[name]


def test_any_answer_is_an_image_or_an_error_of_ours() -> None:
    values: list[Any] = [None, True, -1, 1e999, "", "\ud800", [], {}, [None], [[]], {"x": 1}, "y"]
    chance = random.Random(7)  # noqa: S311 - no secret

    def spoilt(value: Any) -> Any:  # noqa: ANN401 - any JSON
        if chance.random() < 0.06:
            return chance.choice(values)
        if isinstance(value, dict):
            return {name: spoilt(one) for name, one in value.items()}
        return [spoilt(one) for one in value] if isinstance(value, list) else value

    good = fake.image_answer(b"picture", "image/png", 5, 1)
    bad = {
        "candidates": [{"finishReason": "OTHER", "finishMessage": "No.", "content": {}}],
        "promptFeedback": {"blockReason": "OTHER", "blockReasonMessage": "No."},
    }
    images = 0
    for number in range(3000):
        try:
            answer = answers.parse_image_answer(spoilt(bad if number % 3 == 0 else good))
        except T2IError as error:
            assert error.message.isprintable()
        else:
            images += 1
            # What goes into a record can be written.
            json.dumps([answer.model_version, answer.response_id, answer.tokens]).encode()
            assert all(type(count) is int for count in (answer.tokens or {}).values())
    assert 500 < images < 2900


# Through real processes.


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[FakeGemini]:
    """The server, for processes with settings of their own."""
    with running_gemini(tmp_path) as state:
        yield state


def test_generate(elsewhere: FakeGemini, t2i: T2I, tmp_path: Path) -> None:
    env = elsewhere.environment
    arguments = ("generate", "a red star", "--size", "512x512", "-n", "2", "-o", "{index}.png")
    done = t2i(*arguments, "--yes", "--json", env=env)
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout.splitlines()[0])
    assert first["seed_confirmed"] is False
    assert first["model_version"] == "gemini-image-2026"
    with Image.open(tmp_path / first["path"]) as image:
        assert image.size == (512, 512)
    assert len(elsewhere.asked) == 2
    inspected = t2i("inspect", first["path"], "--json")
    assert json.loads(inspected.stdout)["lock"]["tokens"]["candidates"] == 747
    elsewhere.faults = [fake.stopped("IMAGE_SAFETY")]
    refused = t2i("generate", "something vile", "-o", "x.png", env=env)
    assert refused.returncode == 10
    assert "withheld the image (IMAGE_SAFETY)" in refused.stderr
    assert fake.TOKEN not in refused.stderr + done.stderr
    seeded = t2i("generate", "a red star", "-s", "3", env=env)
    assert seeded.returncode == 2
    assert "honours no seed" in seeded.stderr
    assert len(elsewhere.asked) == 3


def test_a_batch_is_resumed(elsewhere: FakeGemini, t2i: T2I, tmp_path: Path) -> None:
    prompts = [f"star number {n}" for n in range(6)]
    size = {"width": 512, "height": 512}
    rows: list[dict[str, object]] = [{"prompt": prompt, **size} for prompt in prompts]
    rows[0] = {"prompt": prompts[0], "extras": {"aspect_ratio": "8:1", "image_size": "512"}}
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("batch", "prompts.jsonl", "-o", "out", "--concurrency", "2")

    def refuse(body: fake.Body) -> Fault | None:
        text = body["contents"][0]["parts"][0]["text"]
        return fake.quota() if text.endswith("4") else None

    elsewhere.fault = refuse
    first = t2i(*arguments, "--yes", "--retries", "0", env=elsewhere.environment)
    assert first.returncode == 8, first.stderr
    assert "None" not in first.stderr  # what the models have no word for is not told
    assert len(list((tmp_path / "out").glob("*.png"))) == 5
    assert len(elsewhere.asked) == 6
    elsewhere.fault = lambda body: None
    second = t2i(*arguments, "--yes", env=elsewhere.environment)
    assert second.returncode == 0, second.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 6
    # Only the missing one was asked for, and so billed.
    asked = [body["contents"][0]["parts"][0]["text"] for body in elsewhere.asked]
    assert sorted(asked[:6]) == prompts
    assert asked[6:] == ["star number 4"]
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert sum('"response_id"' in line for line in lines) == 6


def test_serve(elsewhere: FakeGemini, t2i_env: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "t2i_cli", "serve", "--port", "0", "-m", PRO]
    with subprocess.Popen(
        command,
        env=t2i_env | elsewhere.environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            body = {"prompt": "a red star", "size": "1024x1024", "response_format": "b64_json"}
            answer = httpx2.post(f"{url}/v1/images/generations", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            assert answer.json()["data"][0]["t2i"]["lock"]["backend"] == "gemini"
            elsewhere.faults = [fake.blocked("SAFETY")]
            refused = httpx2.post(f"{url}/v1/images/generations", json=body, timeout=60)
            assert refused.status_code == 422
            assert "refuses the prompt" in refused.text
        finally:
            process.terminate()
            process.wait(60)
