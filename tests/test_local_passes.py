"""How many images a pass makes, and that text is encoded once for all of them."""

import functools
import threading
from pathlib import Path

import pytest

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import (
    LocalBackend,
    LocalOptions,
    batch_size,
    memory,
    prompt_embedding_cache,
)
from t2i_cli.backends.local.batch_size import MAX_SIZE, BatchSizeTuner
from t2i_cli.backends.local.device import Device
from t2i_cli.models.libraries import LibraryObject
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


def test_the_search_may_begin_with_more_and_then_halves() -> None:
    def explore_from_four(rate: dict[int, float]) -> list[int]:
        sizes, taken = BatchSizeTuner(None, MAX_SIZE, 4), list[int]()
        for _ in range(16):
            size = sizes.next_size(999, None)
            sizes.record(size, size / rate.get(size, 1.0))
            taken.append(size)
        return taken

    assert explore_from_four({4: 4.0, 8: 8.0, 16: 8.0})[-1] == 8
    assert explore_from_four({1: 1.0, 2: 2.0, 4: 1.0, 8: 1.0})[-1] == 2
    assert set(explore_from_four({})[-4:]) == {1}
    gpu = Device(name="cuda:0", kind="cuda", label="")
    cpu = Device(name="cpu", kind="cpu", label="")

    def first(asked: int | None, cls: type, device: Device, most: int = MAX_SIZE) -> int:
        return batch_size.make_tuner(asked, cls, device, lambda: most).next_size(99, None)

    assert [first(None, StableDiffusionPipeline, device) for device in (gpu, cpu)] == [4, 2]
    assert first(None, StableDiffusionPipeline, gpu, most=3) == 3
    assert first(7, StableDiffusionPipeline, cpu, most=3) == 7
    assert first(7, Unlisted, gpu) == 1


class StableDiffusionPipeline:
    """Stands for diffusers' class, by its name."""

    __module__ = "diffusers.pipelines"


class Unlisted:
    """A pipeline of which nothing is known."""


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
    remembering = prompt_embedding_cache._CachedForward(None)
    remembering.wrap(forward)
    ids = torch.arange(4).repeat(4, 1).T.contiguous()
    for _ in range(2):
        out = remembering(ids[:3], output_hidden_states=True)
        assert torch.equal(out.hidden_states[0], ids[:3])
    assert calls == [0, 1, 2]
    assert torch.equal(out.last_hidden_state, ids[:3].float().unsqueeze(-1))
    for one in (ids[3:], ids[:1]):
        assert torch.equal(remembering(one, output_hidden_states=True).hidden_states[0], one)
    assert calls == [0, 1, 2, 3, 0], "the oldest went"
    remembering(ids[:1], output_hidden_states=False)
    assert calls[-1] == 0, "other arguments make another output"
    assert len(calls) == 6


class Encoded:
    """Counts the rows of each call of an encoder's own `forward`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cls: type) -> None:
        self.rows: list[int] = []
        real = cls.forward  # type: ignore[attr-defined]

        @functools.wraps(real)
        def forward(model: object, input_ids: object = None, **kwargs: object) -> object:
            self.rows.append(len(input_ids))  # type: ignore[arg-type]
            return real(model, input_ids, **kwargs)

        monkeypatch.setattr(cls, "forward", forward)


SAMPLE = ("flux2-klein", "qwen-image")
LANGUAGE_FAMILIES = [
    ("flux2-klein", "Qwen3ForCausalLM"),
    ("qwen-image", "Qwen2_5_VLForConditionalGeneration"),
    ("z-image", "Qwen3Model"),
    ("sana", "Gemma2Model"),
    ("cogview4", "GlmModel"),
    ("hidream", "LlamaForCausalLM"),
    ("aura-flow", "UMT5EncoderModel"),
    ("hunyuan-dit", "BertModel"),
]


@pytest.mark.parametrize(
    ("family", "encoder"),
    [
        pytest.param(*pair, marks=[pytest.mark.full] * (pair[0] not in SAMPLE))
        for pair in LANGUAGE_FAMILIES
    ],
)
def test_language_models_encode_once_and_the_pictures_are_the_same(
    family: str, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    folder = tiny_models.save(family, tmp_path / family)
    encoded = Encoded(monkeypatch, getattr(transformers, encoder))
    side = 256 if family == "hidream" else 64
    size = {"width": side, "height": side, "model": str(folder)}
    made, calls = [], []
    for remember in (prompt_embedding_cache.cache_text_embeddings, lambda pipe: None):
        monkeypatch.setattr(prompt_embedding_cache, "cache_text_embeddings", remember)
        backend = LocalBackend(LocalOptions(batch_size=1))
        requests = [ask(backend, p, 3, **size) for p in ("a star", "a house", "a star", "a star")]
        made.append(pictures(backend, requests))
        calls.append(len(encoded.rows))
        encoded.rows.clear()
        backend.close()
    assert made[0] == made[1]
    assert made[0][0] == made[0][2] != made[0][1]
    guided = calls[1] // len(requests)
    assert calls == [guided + 1, 4 * guided], "two prompts, and the empty one where it guides"


def language_model() -> LibraryObject:
    from tests import tiny_language

    return tiny_language.language_model("Qwen3ForCausalLM")


def cached(model: LibraryObject) -> LibraryObject:
    """The model, of a pipeline of diffusers, with its cache."""
    pipe = type("Pipe", (), {"__module__": "diffusers.x", "components": {"text_encoder": model}})()
    prompt_embedding_cache.cache_text_embeddings(pipe)
    return model


def test_only_the_layers_that_are_read_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    plain, model = language_model(), language_model()
    model.load_state_dict(plain.state_dict())
    encoded = Encoded(monkeypatch, type(model))
    remembering = cached(model).forward
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
    asked = {"attention_mask": (ids > 0).long(), "output_hidden_states": True}
    with torch.no_grad():
        alone = [
            plain(ids[n : n + 1], attention_mask=(ids > 0).long()[n : n + 1], **hidden)
            for n in (0, 1)
            for hidden in [{"output_hidden_states": True}]
        ]
        encoded.rows.clear()
        for _ in range(2):
            out = model(ids, **asked)
            assert out.past_key_values is out.logits is None
            assert len(out.hidden_states) == 3
            for layer in (-2, 2):
                wanted = torch.cat([one.hidden_states[layer] for one in alone])
                assert torch.equal(out.hidden_states[layer], wanted)
        assert encoded.rows == [1, 1]
        layer_bytes = wanted.nbytes
        assert remembering._bytes == 2 * layer_bytes
        first = model(ids, **asked).hidden_states[:1][0]
        assert torch.equal(first, torch.cat([one.hidden_states[0] for one in alone]))
        assert encoded.rows == [1, 1, 1, 1], "a layer that was not kept is computed"
        assert remembering._bytes == 3 * layer_bytes
        model(ids, **asked).hidden_states[0]
        assert encoded.rows == [1, 1, 1, 1]


def test_what_is_no_encoding_of_texts_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = language_model()
    encoded = Encoded(monkeypatch, type(model))
    cached(model)
    ids = torch.tensor([[5, 6, 7], [8, 9, 4], [1, 2, 3]])
    with torch.no_grad():
        assert model(ids, use_cache=True).past_key_values is not None
        assert model(ids, inputs_embeds=None, logits_to_keep=torch.arange(3)).logits is not None
        assert isinstance(model(ids, return_dict=False), tuple)
        written = model.generate(ids, max_new_tokens=2, do_sample=False)
        model(ids)
        handle = model.model.layers[0].register_forward_hook(lambda *_: None)
        model(ids)
        handle.remove()
        model(ids)
    assert written.shape == (3, 5)
    assert encoded.rows == [3] * 5 + [1, 1, 1] + [3]


def test_a_custom_pipelines_language_model_is_left_alone() -> None:
    model = language_model()
    pipe = type("Pipe", (), {"__module__": "remote", "components": {"text_encoder": model}})()
    prompt_embedding_cache.cache_text_embeddings(pipe)
    assert not isinstance(model.forward, prompt_embedding_cache._CachedForward)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_chatglm_has_its_rows_on_the_second_axis() -> None:
    import torch
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    torch.manual_seed(0)
    sizes = {"num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 16, "seq_length": 8}
    heads = {"kv_channels": 8, "num_attention_heads": 2, "multi_query_group_num": 2}
    config = ChatGLMConfig(
        padded_vocab_size=32, original_rope=True, multi_query_attention=True, **sizes, **heads
    )
    plain = ChatGLMModel(config).eval()
    for parameter in plain.parameters():  # it leaves some as the memory was
        torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.tensor([[0, 0, 5, 6], [0, 7, 8, 9]])
    mask = (ids > 0).long()
    places = (mask.cumsum(1) - 1).clamp(min=0)
    asked = {"attention_mask": mask, "position_ids": places, "output_hidden_states": True}
    with torch.no_grad():
        wanted = plain(input_ids=ids, **asked).hidden_states
        model = cached(plain)
        for _ in range(2):
            found = model(input_ids=ids, **asked).hidden_states
            assert torch.allclose(found[-2], wanted[-2], atol=1e-5)
            assert torch.allclose(found[-1][-1, :, :], wanted[-1][-1, :, :], atol=1e-5)
    assert len(model.forward._cache) == 2
