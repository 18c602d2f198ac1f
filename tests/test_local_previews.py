"""Previews: real ones, from the latents of any family, that change nothing of the image."""

import threading
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions, previews
from t2i_cli.events import Event, Preview
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest
from tests import tiny_models


@pytest.fixture(scope="module")
def postcard() -> LocalBackend:
    return LocalBackend(LocalOptions(device="cpu", batch_size=None))


def made(
    backend: LocalBackend, wanted: list[int], **fields: object
) -> tuple[list[Image.Image], list[Preview]]:
    """The images of as many requests as there are numbers, and the previews on the way."""
    asked = [
        GenerateRequest(prompt=f"a red house {n}", seed=n, **({"model": "postcard"} | fields))  # type: ignore[arg-type]
        for n in range(len(wanted))
    ]
    spec = backend.describe(asked[0])
    events: list[Event] = []
    outcomes = backend.run(
        [resolve_request(one, spec) for one in asked], events.append, threading.Event(), wanted
    )
    images = {one.index: one.image for one in outcomes if isinstance(one, GeneratedImage)}
    assert sorted(images) == list(range(len(wanted)))
    shown = [event for event in events if isinstance(event, Preview)]
    return [images[n] for n in sorted(images)], shown


def difference(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two pictures' values, of 255."""
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3


def test_previews_come_as_asked_nearer_and_nearer_to_an_image_that_they_leave_alone(
    postcard: LocalBackend,
) -> None:
    fields = {"steps": 8, "width": 64, "height": 96}
    plain, none = made(postcard, [0, 0], **fields)
    assert not none
    images, shown = made(postcard, [3, 1], **fields)
    assert [(one.index, one.step, one.steps) for one in shown] == [
        *((0, 2, 8), (0, 4, 8), (1, 4, 8), (0, 6, 8))
    ]
    assert all(one.image.size == (64, 96) and one.image.mode == "RGB" for one in shown)
    first = [difference(one.image, images[0]) for one in shown if one.index == 0]
    assert first == sorted(first, reverse=True)
    assert first[-1] < difference(shown[-1].image, images[1])
    assert [a.tobytes() for a in images] == [b.tobytes() for b in plain]


@pytest.mark.parametrize("scheduler", ["euler", "ddim", "unipc", "pndm", "heun", "dpm++2s"])
def test_the_last_preview_is_almost_the_image_with_any_scheduler(
    postcard: LocalBackend, scheduler: str
) -> None:
    [image], shown = made(postcard, [9], steps=10, width=64, height=64, scheduler=scheduler)
    assert [one.step for one in shown] == list(range(1, 10))
    assert difference(shown[-1].image, image) < difference(shown[0].image, image)


def test_large_images_have_small_previews(
    postcard: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews, "MAX_PREVIEW_SIDE", 64)
    [image], shown = made(postcard, [1], steps=2, width=128, height=96)
    assert image.size == (128, 96)
    assert [one.image.size for one in shown] == [(64, 48)]


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "pixart"])
def test_every_family_has_previews(family: str, tmp_path: Path) -> None:
    backend = LocalBackend(LocalOptions(device="cpu"))
    model = str(tiny_models.save(family, tmp_path / family))
    [image], shown = made(backend, [2], model=model, steps=3, width=64, height=32)
    assert [one.step for one in shown] == [1, 2]
    assert {one.image.size for one in shown} == {image.size} == {(64, 32)}


def test_latents_that_no_vae_knows_give_no_previews_and_an_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backend = LocalBackend(LocalOptions(device="cpu"))
    model = str(tiny_models.save("flux", tmp_path / "flux"))
    from diffusers import FluxPipeline

    unpack = FluxPipeline._unpack_latents
    calls: list[int] = []

    def first_fails(*args: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise AttributeError("packed otherwise")
        return unpack(*args)

    monkeypatch.setattr(FluxPipeline, "_unpack_latents", staticmethod(first_fails))
    [image], shown = made(backend, [2], model=model, steps=3, width=64, height=32)
    assert image.size == (64, 32)
    assert not shown
    assert len(calls) == 2
