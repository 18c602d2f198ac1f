"""How many images a pass makes, and that text is encoded once for all of them."""

import threading
from pathlib import Path

import pytest

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions, memory, prompt_embedding_cache
from t2i_cli.backends.local.batch_size import MAX_SIZE, BatchSizeTuner
from t2i_cli.backends.local.device import Device
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest, ResolvedRequest
from tests import tiny_models


def explore(rate: dict[int, float], most: int = MAX_SIZE, images: int = 200) -> list[int]:
    """The sizes of passes on a device that makes so many images a second at each size."""
    sizes = BatchSizeTuner(None, most)
    taken: list[int] = []
    while images:
        size = sizes.next_size(images, None)
        sizes.record(size, size / rate.get(size, 1.0))
        taken.append(size)
        images -= size
    return taken


@pytest.mark.parametrize(
    ("rate", "found"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.0}, 1),
        ({1: 1.0, 2: 1.02, 4: 1.03}, 1),
        ({1: 1.0, 2: 1.4, 4: 1.3}, 2),
        ({1: 1.0, 2: 1.5, 4: 2.0, 8: 2.2, 16: 2.1}, 8),
        ({n: float(n) for n in (1, 2, 4, 8, 16, 32)}, 32),
        ({1: 1.0, 2: 0.5, 4: 0.5}, 1),
    ],
)
def test_the_size_that_makes_most_images_a_second_is_found(
    rate: dict[int, float], found: int
) -> None:
    taken = explore(rate)
    assert taken[:2] == [2, 2], "the first pass warms up"
    steady = taken[8:-2]
    assert steady
    assert set(steady) == {found}


def test_one_slow_pass_ends_no_search() -> None:
    sizes, slow = BatchSizeTuner(None), {4, 16}
    for _ in range(12):
        size = sizes.next_size(99, None)
        sizes.record(size, 99.0 if size in slow else 1.0)
        slow.discard(size)
    assert sizes.next_size(99, None) == MAX_SIZE


def test_memory_and_wishes_bound_the_size() -> None:
    fast = {n: float(n) for n in (1, 2, 4, 8, 16, 32)}
    assert max(explore(fast, most=4)) == 4
    assert set(explore(fast, most=1)) == {1}
    fixed = BatchSizeTuner(3)
    assert [fixed.next_size(10, None), fixed.next_size(2, None), fixed.next_size(10, 1)] == [
        3,
        2,
        1,
    ]
    fixed.record(3, 0.001)
    assert fixed.next_size(10, None) == 3


def test_as_many_fit_as_there_is_memory() -> None:
    needed = memory.MemoryEstimate(
        weights={"unet": 1000}, denoise=100, attention=0, decode=50, tile=10
    )
    here = Device(kind="cpu", name="cpu", label="")
    fits = [memory.images_that_fit(needed, here, free, ()) for free in (1000, 1400, 1800, 10_000)]
    assert fits == [1, 2, 4, 64]


def ask(backend: LocalBackend, prompt: str, seed: int, **more: object) -> ResolvedRequest:
    request = GenerateRequest(prompt=prompt, seed=seed, steps=1, **more)  # type: ignore[arg-type]
    return resolve_request(request, backend.describe(request))


def pictures(backend: LocalBackend, requests: list[ResolvedRequest]) -> list[bytes]:
    """The pixels of each request's image."""
    found: dict[int, bytes] = {}
    for outcome in backend.run(requests, lambda _: None, threading.Event()):
        assert isinstance(outcome, GeneratedImage), outcome
        found[outcome.index] = outcome.image.tobytes()
    return [found[index] for index in range(len(requests))]


def test_text_is_encoded_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CLIPTextModel

    encoded: list[int] = []
    real = CLIPTextModel.forward

    def forward(self: CLIPTextModel, input_ids: object, *args: object, **kwargs: object) -> object:
        encoded.append(len(input_ids))  # type: ignore[arg-type]
        return real(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(CLIPTextModel, "forward", forward)
    prompts = ["a red star", "a blue house", "a red star", "a red star"]
    remembering = LocalBackend(LocalOptions(batch_size=1))
    model = {"model": "postcard", "negative_prompt": "green"}
    requests = [ask(remembering, p, n, **model) for n, p in enumerate(prompts)]
    first = pictures(remembering, requests)
    assert encoded == [1, 1, 1], "two prompts and the negative one"
    pictures(remembering, requests)
    assert encoded == [1, 1, 1]
    remembering.close()
    encoded.clear()
    monkeypatch.setattr(prompt_embedding_cache, "cache_text_embeddings", lambda pipe: None)
    plain = LocalBackend(LocalOptions(batch_size=1))
    assert pictures(plain, requests) == first
    assert len(encoded) == 8
    plain.close()


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_families_with_several_encoders_make_the_same(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.save(family, tmp_path / family)
    made = []
    for remember in (prompt_embedding_cache.cache_text_embeddings, lambda pipe: None):
        monkeypatch.setattr(prompt_embedding_cache, "cache_text_embeddings", remember)
        backend = LocalBackend(LocalOptions(batch_size=1))
        requests = [ask(backend, p, 3, model=str(folder)) for p in ("a star", "a house", "a star")]
        made.append(pictures(backend, requests))
        backend.close()
    assert made[0] == made[1]
    assert made[0][0] == made[0][2] != made[0][1]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    calls: list[int] = []

    def forward(ids: torch.Tensor, **kwargs: object) -> BaseModelOutput:
        calls.append(int(ids[0, 0]))
        return BaseModelOutput(last_hidden_state=ids.float().unsqueeze(-1), hidden_states=(ids,))

    monkeypatch.setattr(prompt_embedding_cache, "MAX_CACHE_BYTES", 3 * 4 * (4 + 8))
    remembering = prompt_embedding_cache._CachedForward(forward)
    ids = torch.arange(4).repeat(4, 1).T.contiguous()
    for _ in range(2):
        out = remembering(ids[:3], output_hidden_states=True)
    assert calls == [0, 1, 2]
    assert torch.equal(out.last_hidden_state, ids[:3].float().unsqueeze(-1))
    assert torch.equal(out.hidden_states[0], ids[:3])
    remembering(ids[3:], output_hidden_states=True)
    remembering(ids[:1], output_hidden_states=True)
    assert calls == [0, 1, 2, 3, 0], "the oldest went"
    remembering(ids[:1], output_hidden_states=False)
    assert calls[-1] == 0, "other arguments make another output"
    assert len(calls) == 6
