"""OpenAI's dialect, by OpenAI's own client, unchanged, over a real socket."""

import base64
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types import (
    Image,
    ImageGenCompletedEvent,
    ImageGenPartialImageEvent,
    ImagesResponse,
)
from PIL import Image as Pillow

from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.errors import ContentFilteredError, OutOfMemoryError, T2IError, TimedOutError
from t2i_cli.image_formats import ImageFormat
from t2i_cli.models import catalog
from t2i_cli.output import metadata
from t2i_cli.request import ResolvedRequest
from t2i_cli.server.options import ServerLimits, ServerOptions
from tests.fakes.serving import Running, serving
from tests.fakes.stub_backend import Held, StubBackend

FAILURES: dict[str, T2IError] = {
    "withheld": ContentFilteredError("The safety checker withheld the image."),
    "memory": OutOfMemoryError("The device has too little memory."),
    "slow": TimedOutError("It took too long."),
}
"""What happens to a prompt."""
KEY = "a secret key"


def fails(request: ResolvedRequest) -> T2IError | None:
    return FAILURES.get(request.prompt)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(StubBackend(fails=fails)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with connected(server) as found:
        yield found


def connected(server: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=120)


def only(answer: ImagesResponse) -> Image:
    """The one image of an answer."""
    assert answer.data is not None
    (image,) = answer.data
    return image


def decoded(text: str | None) -> bytes:
    assert text is not None
    return base64.b64decode(text, validate=True)


def opened(data: bytes) -> Pillow.Image:
    return Pillow.open(io.BytesIO(data))


def echoed(image: Image) -> dict[str, Any]:
    """The resolved request that came with an image."""
    assert image.model_extra is not None
    request: dict[str, Any] = image.model_extra["t2i"]["request"]
    return request


def test_an_image_as_base64(client: openai.OpenAI, tmp_path: Path) -> None:
    answer = client.images.generate(prompt="a red star", model="postcard", size="64x128")
    assert (answer.output_format, answer.background) == ("png", "opaque")
    file = tmp_path / "image.png"
    file.write_bytes(decoded(only(answer).b64_json))
    found = metadata.read_metadata(file)
    assert answer.size == f"{found.width}x{found.height}"
    # The record in the image is what the answer tells.
    assert found.request == echoed(only(answer))
    assert only(answer).model_extra == {
        "t2i": {"request": found.request, "lock": found.lock, "seconds": 0.5}
    }
    assert (found.request["width"], found.request["height"]) == (64, 128)


def test_an_image_behind_a_link(server: Running, client: openai.OpenAI) -> None:
    url = only(client.images.generate(prompt="a", response_format="url", output_format="webp")).url
    assert url is not None
    assert url.startswith(f"{server.url}/v1/images/files/")
    answer = httpx2.get(url)
    assert answer.headers["Content-Type"] == "image/webp"
    assert answer.headers["Cache-Control"].startswith("private, max-age=")
    assert opened(answer.content).format == "WEBP"
    wrong = httpx2.get(url.removesuffix(".webp") + "A.webp")
    assert wrong.status_code == 404
    assert wrong.json()["error"]["type"] == "invalid_request_error"


def test_several_images_count_up_from_the_seed(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a", n=3, extra_body={"seed": 41})
    assert answer.data is not None
    assert [echoed(image)["seed"] for image in answer.data] == [41, 42, 43]
    assert len({image.b64_json for image in answer.data}) == 3


def test_a_seed_of_minus_one_is_none(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a", n=2, extra_body={"seed": -1})
    first, second = (echoed(image)["seed"] for image in answer.data or [])
    assert second == first + 1
    drawn = {
        echoed(only(client.images.generate(prompt="a", extra_body={"seed": seed})))["seed"]
        for seed in (-1, -1.0)
    }
    assert len(drawn | {first}) == 3, "they are drawn at random"


def test_the_fields_that_open_servers_share(client: openai.OpenAI) -> None:
    asked = {
        "negative_prompt": "a circle",
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "seed": 7,
        "scheduler": "ddim",
    }
    image = only(client.images.generate(prompt="a", extra_body=asked))
    steps = {"steps": asked.pop("num_inference_steps")}
    assert echoed(image).items() >= (asked | steps).items()


def test_true_cfg_scale_is_for_the_models_that_call_it_so() -> None:
    spec = catalog.MODELS["qwen-image"]
    with serving(StubBackend(), model=spec.name) as server, connected(server) as client:

        def guidance(**asked: float) -> float:
            answer = client.images.generate(prompt="a", extra_body=asked)
            found: float = echoed(only(answer))["guidance_scale"]
            return found

        assert guidance(true_cfg_scale=2.5) == 2.5
        assert guidance(guidance_scale=2.5) == 2.5
        assert guidance(guidance_scale=2.5, true_cfg_scale=2.5) == 2.5
        assert guidance() == spec.guidance_scale
        with pytest.raises(openai.BadRequestError) as caught:
            guidance(guidance_scale=2.5, true_cfg_scale=3)
        assert caught.value.param == "guidance_scale"


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_formats(client: openai.OpenAI, format: ImageFormat) -> None:
    answer = client.images.generate(prompt="a", output_format=format)
    assert answer.output_format == format
    assert opened(decoded(only(answer).b64_json)).format == format.upper()


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_compression_is_honoured(format: ImageFormat) -> None:
    with serving(StubBackend(side=256)) as server, connected(server) as client:

        def size(compression: int) -> int:
            answer = client.images.generate(
                prompt="a",
                output_format=format,
                output_compression=compression,
                extra_body={"seed": 1},
            )
            return len(decoded(only(answer).b64_json))

        assert size(0) < size(100)


def test_what_is_only_openais_default_is_taken(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        prompt="a",
        size="auto",
        quality="auto",
        background="auto",
        moderation="auto",
        style=None,
        user="somebody",
        safety_identifier="somebody",
        stream=False,
        partial_images=0,
        n=1,
    )
    assert echoed(only(answer))["width"] == 128


@pytest.mark.parametrize(
    ("param", "asked"),
    [
        ("quality", {"quality": "hd"}),
        ("style", {"style": "vivid"}),
        ("background", {"background": "transparent"}),
        ("moderation", {"moderation": "low"}),
        ("complexity", {"complexity": "high"}),
        ("frame_count", {"frame_count": 3}),
        ("svg", {"svg": {"model": "a"}}),
        ("output_format", {"output_format": "gif"}),
        ("output_compression", {"output_compression": 50}),
        ("output_compression", {"output_compression": 101, "output_format": "jpeg"}),
        ("response_format", {"response_format": "file"}),
        ("response_format", {"response_format": "url", "stream": True}),
        ("partial_images", {"partial_images": 2}),
        ("partial_images", {"partial_images": 4, "stream": True}),
        ("n", {"n": 0}),
        ("n", {"n": 11}),
        ("n", {"n": "2"}),
        ("size", {"size": "large"}),
        ("size", {"size": "100x100"}),
        ("size", {"size": "8192x8192"}),
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": "a" * 5001}),
        ("seed", {"seed": -2}),
        ("seed", {"seed": 2**32 - 1, "n": 2}),
        ("num_inference_steps", {"num_inference_steps": 0}),
        ("num_inference_steps", {"num_inference_steps": 999}),
        ("guidance_scale", {"guidance_scale": 101}),
        ("true_cfg_scale", {"true_cfg_scale": 4}),
        ("negative_prompt", {"negative_prompt": "b", "guidance_scale": 1}),
        ("scheduler", {"scheduler": "none"}),
        ("mask", {"mask": "a"}),
    ],
)
def test_what_cannot_be_honoured_is_named(
    client: openai.OpenAI, param: str, asked: dict[str, object]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/images/generations", cast_to=object, body={"prompt": "a"} | asked)
    error = caught.value
    assert (error.param, error.type) == (param, "invalid_request_error")
    assert isinstance(error.body, dict)
    assert error.body["message"]


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("postcard", "model", "t2i")
    assert client.models.retrieve("postcard") == model


def test_a_model_of_the_hub_by_either_name() -> None:
    spec = catalog.MODELS["sd15"]
    assert spec.repo is not None
    with serving(StubBackend(), model=spec.name) as server, connected(server) as client:
        assert client.models.retrieve(spec.repo).id == spec.name
        assert only(client.images.generate(prompt="a", model=spec.repo)).b64_json


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("owner/gpt-image")
    assert (caught.value.type, caught.value.code) == ("invalid_request_error", "model")
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="a", model="/etc/passwd")
    assert caught.value.param == "model"


def test_more_images_than_this_server_makes_name_n() -> None:
    with (
        serving(StubBackend(), limits=ServerLimits(images=2)) as server,
        connected(server) as client,
    ):
        with pytest.raises(openai.BadRequestError, match="1 to 2 images") as caught:
            client.images.generate(prompt="a", n=3)
    assert caught.value.param == "n"


@pytest.mark.parametrize(
    ("prompt", "kind", "status"),
    [
        ("withheld", openai.UnprocessableEntityError, 422),
        ("memory", openai.InternalServerError, 503),
        ("slow", openai.InternalServerError, 504),
    ],
)
def test_a_failure_is_its_clients_own_error(
    client: openai.OpenAI, prompt: str, kind: type[openai.APIStatusError], status: int
) -> None:
    with pytest.raises(kind) as caught:
        client.images.generate(prompt=prompt, n=2)
    assert (caught.value.status_code, caught.value.code) == (status, FAILURES[prompt].code)


def test_a_full_queue_is_a_rate_limit() -> None:
    held = Held()
    with (
        serving(held, limits=ServerLimits(queue=1, max_batch=1)) as server,
        connected(server) as client,
        ThreadPoolExecutor(2) as others,
    ):
        taken = [others.submit(client.images.generate, prompt="a") for _ in range(2)]
        while not (server.engine.running and server.engine.waiting):
            time.sleep(0.01)
        try:
            with pytest.raises(openai.RateLimitError) as caught:
                client.images.generate(prompt="a")
        finally:
            held.go.set()
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        assert all(only(one.result()).b64_json for one in taken)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(stream: bool) -> None:
    held = Held()
    with serving(held) as server:
        body = {"prompt": "a", "n": 3, "stream": stream}
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(
                f"{server.url}/v1/images/generations",
                json=body,
                timeout=httpx2.Timeout(60, read=1),
            )
        while server.engine.running:
            time.sleep(0.01)
    assert (held.cancelled, held.made) == (1, [])


def test_the_key() -> None:
    with serving(StubBackend(), options=ServerOptions(api_key=KEY)) as server:
        with connected(server, KEY) as client:
            url = only(client.images.generate(prompt="a", response_format="url")).url
        with connected(server, "another") as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                client.images.generate(prompt="a")
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        assert url is not None
        assert httpx2.get(url).status_code == 401
        assert httpx2.get(url, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    assert caught.value.type == "authentication_error"
    assert KEY not in str(caught.value.body)


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/images/generations", b"{", 400),
        ("POST", "/v1/images/generations", b"[1]", 400),
        ("POST", "/v1/images/generations", b"x" * 2**21, 413),
        ("GET", "/v1/images/generations", b"", 405),
        ("GET", "/v1/images/files/none.png", b"", 404),
        ("POST", "/v1/images/edits", b"{}", 404),
        ("DELETE", "/v1/models", b"", 405),
    ],
)
def test_every_error_is_openais_object(
    server: Running, method: str, path: str, content: bytes, status: int
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx2.request(method, server.url + path, content=content, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"].keys() >= {"message", "type", "param", "code"}


def test_a_stream_shows_the_image_on_its_way(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt="a", stream=True, partial_images=3, size="128x128"))
    *partial, last = events
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 3
    for number, event in enumerate(partial):
        assert isinstance(event, ImageGenPartialImageEvent)
        assert event.partial_image_index == number
        assert opened(decoded(event.b64_json)).format == "PNG"
    assert isinstance(last, ImageGenCompletedEvent)
    image = opened(decoded(last.b64_json))
    assert last.size == f"{image.width}x{image.height}"
    assert last.usage.total_tokens == 0
    assert last.model_extra is not None
    assert last.model_extra["t2i"]["request"]["prompt"] == "a"


def test_a_stream_of_several(client: openai.OpenAI) -> None:
    events = list(
        client.images.generate(
            prompt="a", stream=True, n=2, output_format="jpeg", extra_body={"seed": 5}
        )
    )
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    extras = [event.model_extra["t2i"] for event in events if event.model_extra]
    assert [(extra["index"], extra["request"]["seed"]) for extra in extras] == [(0, 5), (1, 6)]
    assert {opened(decoded(event.b64_json)).format for event in events} == {"JPEG"}


def test_the_example_of_the_docs(server: Running) -> None:
    page = (Path(__file__).parent.parent / "docs/serve.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0]
    code = example.replace("http://127.0.0.1:7860", server.url)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    first, *events = done.stdout.splitlines()
    assert first.endswith(" 7")
    assert [event.rpartition(".")[2] for event in events] == ["partial_image"] * 3 + ["completed"]


def test_a_stream_that_fails(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="withheld") as caught:
        list(client.images.generate(prompt="withheld", stream=True))
    assert caught.value.code == "withheld"


def test_a_stream_that_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a", stream=True, size="1x1")
    assert caught.value.param == "size"


def test_real_previews() -> None:
    """The model's latents as they become the image, each nearer to it than the one before."""
    import numpy as np

    backend = LocalBackend(LocalOptions(device="cpu"))
    with serving(backend) as server, connected(server) as client:
        events = list(
            client.images.generate(
                prompt="a red star on a white background",
                stream=True,
                partial_images=3,
                extra_body={"seed": 1, "num_inference_steps": 12},
            )
        )
    shown = [np.asarray(opened(decoded(event.b64_json)), dtype=float) for event in events]
    assert len(shown) == 4
    height, width = shown[0].shape[:2]
    last = np.asarray(opened(decoded(events[-1].b64_json)).resize((width, height)), dtype=float)
    distances = [np.abs(image - last).mean() for image in shown[:-1]]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0] / 2
