"""The step cache: diffusers' first-block hook on real tiny transformers, for one pass."""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions, step_cache
from t2i_cli.cli.options import RequestOptions
from t2i_cli.errors import InputError
from t2i_cli.events import Event, Step
from t2i_cli.models import libraries
from t2i_cli.models.catalog import MODELS
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.models.step_cache_support import STEP_CACHE_PIPELINES
from t2i_cli.prompts.entries import check_value
from t2i_cli.request import GenerateRequest, ResolvedRequest
from tests import tiny_models
from tests.conftest import T2I

STEPS = 16
EVERY_STEP = 1e-7
"""A threshold below which no step's change lies: all is computed."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipelines that set cache contexts, and one that does not; with two blocks at least."""
    root = tmp_path_factory.mktemp("families")
    names = ("flux", "qwen-image", "flux-kontext")
    return {name: tiny_models.save(name, root / name) for name in names}


@pytest.fixture
def backend() -> Iterator[LocalBackend]:
    made = LocalBackend(LocalOptions(batch_size=None))
    yield made
    made.close()


def ask(backend: LocalBackend, folder: Path, **fields: object) -> ResolvedRequest:
    settings = {"prompt": "a red house", "seed": 1, "steps": STEPS, "width": 64, "height": 64}
    request = GenerateRequest(model=str(folder), **settings | fields)  # type: ignore[arg-type]
    return resolve_request(request, backend.describe(request))


def run(backend: LocalBackend, *requests: ResolvedRequest) -> list[GeneratedImage]:
    outcomes = list(backend.run(requests, lambda _: None, threading.Event()))
    images = [outcome for outcome in outcomes if isinstance(outcome, GeneratedImage)]
    assert len(images) == len(requests), outcomes
    return sorted(images, key=lambda image: image.index)


def pixels(image: GeneratedImage) -> NDArray[np.int16]:
    return np.asarray(image.image, dtype=np.int16)


class Tail:
    """Counts how often a pipeline's last block computes."""

    def __init__(self, pipe: LibraryObject) -> None:
        transformer = pipe.transformer
        blocks = getattr(transformer, "single_transformer_blocks", None)
        self.count = 0
        (blocks or transformer.transformer_blocks)[-1].attn.register_forward_pre_hook(self._called)

    def _called(self, *_: object) -> None:
        self.count += 1


@pytest.mark.parametrize(("family", "calls"), [("flux", 1), ("qwen-image", 2), ("flux-kontext", 1)])
def test_steps_are_skipped_and_nothing_is_left_to_the_next_row(
    family: str, calls: int, folders: dict[str, Path], backend: LocalBackend
) -> None:
    """`calls` of the transformer a step: one for the prompt, one for the negative prompt."""
    negative = {"negative_prompt": "rain", "guidance_scale": 3.0} if calls == 2 else {}
    folder = folders[family]
    [plain] = run(backend, ask(backend, folder, **negative))
    assert backend._loaded
    tail = Tail(backend._loaded.pipe)

    def count(*requests: ResolvedRequest) -> tuple[int, list[GeneratedImage]]:
        tail.count = 0
        images = run(backend, *requests)
        return tail.count, images

    cached = [ask(backend, folder, step_cache=1.0, seed=seed, **negative) for seed in (1, 2)]
    # The first step of each image computes, whatever the image before it left.
    once, [alone] = count(cached[0])
    other, _ = count(cached[1])
    assert calls <= once < calls * STEPS
    assert calls <= other < calls * STEPS
    thrice, [first, second, again] = count(*cached, cached[0])
    assert thrice == 2 * once + other
    assert np.array_equal(pixels(first), pixels(alone))
    assert np.array_equal(pixels(first), pixels(again))
    assert not np.array_equal(pixels(first), pixels(second))
    assert not np.array_equal(pixels(first), pixels(plain))
    assert {image.info.batch_size for image in (first, second, again)} == {1}
    assert first.request.identity() != plain.request.identity()
    both = ask(backend, folder, step_cache=EVERY_STEP, **negative)
    computed, [exact, without] = count(both, ask(backend, folder, **negative))
    assert computed == 2 * calls * STEPS
    assert np.array_equal(pixels(exact), pixels(plain))
    assert np.array_equal(pixels(without), pixels(plain))


def test_each_call_of_a_step_has_a_state_of_its_own() -> None:
    """For pipelines that call their transformer twice a step and do not say which call it is."""

    class Transformer:
        def __init__(self) -> None:
            self.contexts: list[str] = []

        @contextmanager
        def cache_context(self, name: str) -> Iterator[None]:
            self.contexts.append(name)
            yield

    transformer = Transformer()
    forward = step_cache._ForwardInContexts(transformer, lambda **kwargs: kwargs["timestep"])
    times = (1.0, 1.0, 0.5, 0.5, 0.0)
    assert [forward(timestep=at) for at in times] == list(times)
    assert transformer.contexts == ["call-0", "call-1", "call-0", "call-1", "call-0"]


def test_a_cancelled_image_leaves_no_state(folders: dict[str, Path], backend: LocalBackend) -> None:
    request = ask(backend, folders["flux"], step_cache=1.0)
    cancel = threading.Event()

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            cancel.set()

    assert list(backend.run([request], stop, cancel)) == []
    [plain] = run(backend, ask(backend, folders["flux"]))
    [cached] = run(backend, request)
    backend.close()
    [fresh, alone] = run(backend, ask(backend, folders["flux"]), request)
    assert np.array_equal(pixels(plain), pixels(fresh))
    assert np.array_equal(pixels(cached), pixels(alone))


def test_a_negative_prompt_changes_what_is_cached(
    folders: dict[str, Path], backend: LocalBackend
) -> None:
    """Were the two calls of a step one state, the second would be given the first's residual."""
    folder = folders["qwen-image"]
    asked = [
        ask(backend, folder, step_cache=1.0, negative_prompt=words, guidance_scale=3.0)
        for words in ("rain", "grey fog")
    ]
    one, other = run(backend, *asked)
    assert not np.array_equal(pixels(one), pixels(other))


def test_passes_of_several_images_are_refused(folders: dict[str, Path]) -> None:
    backend = LocalBackend(LocalOptions(batch_size=2))
    request = ask(backend, folders["flux"], step_cache=0.1)
    with pytest.raises(InputError, match="each image is made alone") as caught:
        backend.check(request)
    assert caught.value.field == "batch_size"


@pytest.mark.parametrize("model", ["postcard", "sd15", "flux2-klein", "z-image-turbo"])
def test_other_models_are_refused_by_name_before_anything_is_loaded(model: str) -> None:
    backend = LocalBackend(LocalOptions(offline=True))
    request = GenerateRequest(prompt="a red house", model=model, step_cache=0.1)
    spec = backend.describe(request)
    with pytest.raises(InputError, match=f"network of a {spec.pipeline}") as caught:
        resolve_request(request, spec)
    assert caught.value.message.startswith(f"{spec.name} takes no step cache: ")
    told: list[str] = []
    settled = resolve_request(request, spec, lenient=True, on_note=told.append)
    assert settled.step_cache is None
    assert "step_cache" not in settled.to_json()
    assert "It is left out." in told[0]


def test_the_option_is_refused_in_one_sentence(t2i: T2I) -> None:
    done = t2i("generate", "a red star", "-m", "postcard", "--step-cache", "0.1", "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: postcard takes no step cache: ")
    wrong = t2i("generate", "a red star", "-m", "postcard", "--step-cache", "2")
    assert "step_cache must be from 0 to 1, not 2.0." in wrong.stderr


def test_zero_is_off_and_no_part_of_an_id() -> None:
    # It is given all the same, as it keeps the default of a user's own model away.
    assert RequestOptions(step_cache=0.0).given() == {"step_cache": 0.0}
    assert check_value("step_cache", 0) == 0
    ids = set()
    for values in ({}, {"step_cache": 0.0}):
        request = build_request({"prompt": "a", "seed": 1, "model": "postcard", **values})
        settled = resolve_request(request, MODELS["postcard"])
        assert settled.step_cache is None
        ids.add(settled.identity())
    assert len(ids) == 1


@pytest.mark.full
@pytest.mark.parametrize("family", sorted(tiny_models.families()))
def test_the_table_has_the_pipelines_that_the_hook_works_for(family: str) -> None:
    import torch

    libraries.import_diffusers()
    with libraries.suppress_warnings():
        pipe = tiny_models.families()[family]()
        transformer = getattr(pipe, "transformer", None)
        if transformer is not None:
            config = dict(transformer.config)
            layers = {key: 2 for key in ("num_layers", "n_layers") if key in config}
            pipe.transformer = type(transformer).from_config(config | layers)
        side = 256 if family == "hidream" else 64
        taken = inspect.signature(pipe.__call__).parameters
        more = {name: 64 * 64 for name in ("max_area",) if name in taken}
        try:
            with torch.inference_mode(), step_cache.step_caching(pipe, 0.3):
                made = pipe(
                    prompt="a red house",
                    height=side,
                    width=side,
                    num_inference_steps=3,
                    output_type="latent",
                    **more,
                )
        except (InputError, TypeError, ValueError):
            works = False
        else:
            works = bool(torch.isfinite(made.images).all())
    assert works == (type(pipe).__name__ in STEP_CACHE_PIPELINES)
