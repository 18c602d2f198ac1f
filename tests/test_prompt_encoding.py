"""Weighted prompts in real pipelines: a weight of 1 changes no pixel, others act."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import (
    LocalBackend,
    LocalOptions,
    memory,
    prompt_check,
    weighted_prompts,
)
from t2i_cli.errors import InputError, ModelError
from t2i_cli.events import Event, Notice
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.request import ResolvedRequest
from tests import tiny_models

Pixels = NDArray[np.int16]


class Model:
    """A model on this machine; `events` are those of all its runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.backend = LocalBackend(LocalOptions(batch_size=2))
        self.events: list[Event] = []

    def ask(self, prompt: str, syntax: str | None = None, **fields: object) -> ResolvedRequest:
        """A request, settled for the model."""
        values = {"prompt": prompt, "prompt_syntax": syntax, "seed": 1, "steps": 2}
        values |= {"width": 64, "height": 64}
        request = build_request(values | {"model": self.name} | fields)
        return resolve_request(request, self.backend.describe(request))

    def pictures(self, *requests: ResolvedRequest) -> list[Pixels]:
        """The pixels of each request's image, made in one run."""
        found: dict[int, Pixels] = {}
        for outcome in self.backend.run(requests, self.events.append, threading.Event()):
            assert isinstance(outcome, GeneratedImage), outcome.error
            found[outcome.index] = np.asarray(outcome.image, np.int16)
        return [found[index] for index in range(len(requests))]

    def picture(self, prompt: str, syntax: str | None = None, **fields: object) -> Pixels:
        """The pixels of one image."""
        return self.pictures(self.ask(prompt, syntax, **fields))[0]

    def embedding(self, prompt: str, syntax: str = "a1111", **fields: object) -> LibraryObject:
        """The embedding (tokens x width) that the pipeline is given for a prompt."""
        loaded = self.backend._loaded
        assert loaded
        request = self.ask(prompt, syntax, **fields)
        arguments = weighted_prompts.embedding_arguments(loaded, {}, [request])
        assert "prompt" not in arguments
        return arguments["prompt_embeds"][0]


@pytest.fixture(scope="module")
def postcard() -> Iterator[Model]:
    """The embedded model, loaded."""
    model = Model("postcard")
    model.picture("a red star")
    yield model
    model.backend.close()


def equal(one: Pixels, other: Pixels) -> bool:
    return bool((one == other).all())


@pytest.mark.parametrize("fields", [{}, {"negative_prompt": "green"}, {"clip_skip": 2}])
def test_a_weight_of_1_changes_no_pixel_and_others_do(
    postcard: Model, fields: dict[str, Any]
) -> None:
    plain = postcard.picture("a red star", **fields)
    assert equal(plain, postcard.picture("a (red:1.0) star", "a1111", **fields))
    assert equal(plain, postcard.picture("a red star", "compel", **fields))
    more = postcard.picture("a (red:1.5) star", "a1111", **fields)
    less = postcard.picture("a [[[red]]] star", "a1111", **fields)
    assert not any(equal(*pair) for pair in ((plain, more), (plain, less), (more, less)))
    assert equal(more, postcard.picture("a (red)1.5 star", "compel", **fields))


def test_a_weight_moves_the_words_own_embedding(postcard: Model) -> None:
    plain = postcard.embedding("a red star")
    empty = postcard.embedding("()")
    more = postcard.embedding("a (red:1.5) star")
    # Tokens: begin, a, red, star, end.
    moved = (more - plain).abs().sum(-1) > 0
    assert moved.nonzero().flatten().tolist() == [2]
    assert ((more - empty)[2] - 1.5 * (plain - empty)[2]).abs().max() < 1e-4
    # The smaller the weight, the nearer to the text without the word; far above 1 it goes on.
    without = postcard.embedding("a (red:0) star")
    distances = [
        float((postcard.embedding(f"a (red:{weight}) star") - without).norm())
        for weight in (0.01, 0.5, 0.8, 1)
    ]
    assert distances == sorted(distances)
    assert distances[0] < distances[-1] / 10


def test_no_word_of_a_long_prompt_is_lost(postcard: Model) -> None:
    long = "a red star, " * 33
    postcard.events.clear()
    ends = [postcard.picture(f"{long} a {word} sea", "a1111") for word in ("blue", "green")]
    assert not equal(*ends)
    assert not any(isinstance(e, Notice) and "too long" in e.message for e in postcard.events)
    plain = [postcard.picture(f"{long} a {word} sea") for word in ("blue", "green")]
    assert equal(*plain)
    assert any(isinstance(e, Notice) and "too long" in e.message for e in postcard.events)
    # The negative prompt as well, beside a short prompt.
    negatives = [
        postcard.picture("a house", "a1111", negative_prompt=f"{long} a {word} sea")
        for word in ("blue", "green")
    ]
    assert not equal(*negatives)


def test_images_that_share_a_run_are_those_made_alone(postcard: Model) -> None:
    prompts = ["a (red:1.4) star", "a blue house", "a star, " * 30, "a (green:0.5) sea"]
    requests = [postcard.ask(prompt, "a1111", seed=n) for n, prompt in enumerate(prompts)]
    together = postcard.pictures(*requests)
    for request, made in zip(requests, together, strict=True):
        (alone,) = postcard.pictures(request)
        # A pass of two images computes the last bits otherwise.
        assert abs(alone - made).max() <= 2


def test_texts_are_encoded_once(postcard: Model) -> None:
    from transformers import CLIPTextModel

    request = postcard.ask("a (red:1.3) sun", "a1111", negative_prompt="blue")
    (first,) = postcard.pictures(request)
    with mock.patch.object(CLIPTextModel, "forward", side_effect=AssertionError):
        assert equal(first, postcard.pictures(request)[0])


_RESCALED: tuple[dict[str, Any], ...] = ({}, {"guidance_rescale": 0.7})


def test_guidance_is_rescaled(postcard: Model) -> None:
    plain, rescaled = (
        postcard.picture("a red star", guidance_scale=8.0, **fields) for fields in _RESCALED
    )
    assert not equal(plain, rescaled)


def test_words_that_have_no_token_are_left_out(postcard: Model) -> None:
    assert equal(
        postcard.picture("a red star", "a1111"), postcard.picture("a red ( :1.5)star", "a1111")
    )
    postcard.picture("( :0.5)", "a1111")


def test_clip_skip_is_diffusers_own_less_one_and_bounded(postcard: Model) -> None:
    skipped = postcard.picture("a red star", clip_skip=2)
    assert equal(skipped, postcard.picture("a red star", extras=(("clip_skip", 1),)))
    assert not equal(skipped, postcard.picture("a red star"))
    backend = LocalBackend(LocalOptions())
    with pytest.raises(InputError, match="takes a CLIP skip of at most"):
        backend.check(postcard.ask("a", clip_skip=60))
    with (
        mock.patch.object(prompt_check, "compel_is_installed", return_value=False),
        pytest.raises(ModelError, match="needs compel, which is not installed") as missing,
    ):
        backend.check(postcard.ask("a", "a1111"))
    assert "t2i-cli[prompts]" in str(missing.value.hint)


@pytest.mark.parametrize("family", ["sdxl", "flux", "flux-kontext"])
def test_families_with_several_encoders(family: str, tmp_path: Path) -> None:
    model = Model(str(tiny_models.save(family, tmp_path / family)))
    plain = model.picture("a red star")
    assert equal(plain, model.picture("a (red:1.0) star", "a1111"))
    assert not equal(plain, model.picture("a (red:1.6) star", "a1111"))
    second = model.picture("a red star", prompt_2="a blue sea")
    assert not equal(plain, second)
    assert equal(second, model.picture("a red star", "a1111", prompt_2="a blue sea"))
    weighted = model.picture("a red star", "a1111", prompt_2="a (blue:1.6) sea")
    assert not equal(second, weighted)
    if family == "sdxl":
        fields: dict[str, Any] = {"negative_prompt": "green", "clip_skip": 2}
        plain = model.picture("a red star", **fields)
        assert equal(plain, model.picture("a red star", "a1111", **fields))
        weighted = model.picture("a red star", "a1111", **fields | {"negative_prompt": "(green)"})
        assert not equal(plain, weighted)
    model.backend.close()


def test_encoders_that_are_offloaded_encode_ahead(tmp_path: Path) -> None:
    model = Model("postcard")
    prompts = ["a (red:1.4) star", "a blue house, " * 20]
    requests = [model.ask(prompt, "a1111") for prompt in prompts]
    before = model.pictures(*requests)
    loaded = model.backend._loaded
    assert loaded
    loaded.measures.append(memory.MODEL_OFFLOAD)
    notices = [event for event in model.events if isinstance(event, Notice)]
    assert all(equal(*pair) for pair in zip(before, model.pictures(*requests), strict=True))
    assert notices == [event for event in model.events if isinstance(event, Notice)]
    model.backend.close()
