"""Weighted prompts where a language model encodes the text, against the pipelines' own encoding."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from t2i_cli import postcard
from t2i_cli.backends.local import memory, weighted_prompts
from t2i_cli.events import Notice
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models.libraries import LibraryObject
from tests import factories, tiny_language, tiny_models
from tests.test_prompt_encoding import Model, equal

FAMILIES: dict[str, Callable[[], LibraryObject]] = {
    "sana": tiny_language.sana,
    "lumina2": tiny_language.lumina2,
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401
    """A model of each family, with a tokenizer to which spaces matter."""

    def build() -> LibraryObject:
        pipe = FAMILIES[request.param]()
        pipe.tokenizer = tiny_language.gemma_tokenizer()
        return pipe

    folder = tmp_path_factory.mktemp(request.param)
    made = Model(str(tiny_models.save_pipeline(build, folder / request.param)))
    yield made
    made.backend.close()


@pytest.mark.parametrize("fields", [{}, {"negative_prompt": "Green,  sea"}])
def test_without_weights_it_is_the_plain_prompt(model: Model, fields: dict[str, Any]) -> None:
    for prompt in ("a red star", " A  Red,Star:\nat sea "):
        plain = model.picture(prompt, **fields)
        assert equal(plain, model.picture(prompt, "a1111", **fields))
        assert equal(plain, model.picture(prompt, "compel", **fields))
    plain = model.picture("a red star", **fields)
    assert equal(plain, model.picture("a (red:1.0) star", "a1111", **fields))
    assert equal(plain, model.picture("a (red)1.0 star", "compel", **fields))


def test_weights_act_in_prompts_and_negative_prompts(model: Model) -> None:
    plain = model.picture("a red star", negative_prompt="blue sea")
    more = model.picture("a (red:1.5) star", "a1111", negative_prompt="blue sea")
    less = model.picture("a (red:0.5) star", "a1111", negative_prompt="blue sea")
    other = model.picture("a red star", "a1111", negative_prompt="(blue sea:0.5)")
    pictures = [plain, more, less, other]
    assert not any(equal(a, b) for n, a in enumerate(pictures) for b in pictures[:n])
    same = model.picture("a (red)1.5 star", "compel", negative_prompt="blue sea")
    assert equal(more, same)


def test_a_weight_moves_the_words_own_embedding(model: Model) -> None:
    plain, more = (model.embedding(f"a {word} star") for word in ("red", "(red:1.5)"))
    moved = ((more - plain).abs().sum(-1) > 0).nonzero().flatten().tolist()
    loaded = model.backend._loaded
    assert loaded
    before = f"{getattr(loaded.pipe, 'system_prompt', '')} <Prompt Start> a"
    tokens = len(loaded.pipe.tokenizer(before)["input_ids"])
    # Lumina 2 takes its system prompt as well, Sana a mark and two tokens before the second word.
    assert moved == [tokens if "Lumina2" in type(loaded.pipe).__name__ else 3]


def test_parts_of_a_prompt_are_read_one_behind_the_other(model: Model) -> None:
    loaded = model.backend._loaded
    assert loaded
    request = model.ask('("a red star", "a sea+").and(1, 0.5)', "compel")
    made = weighted_prompts.embedding_arguments(loaded, {"guidance_scale": 4.0}, [request])
    mask = made["prompt_attention_mask"][0].tolist()
    assert mask == sorted(mask, reverse=True)
    single = model.ask("a red star", "a1111")
    alone = weighted_prompts.embedding_arguments(loaded, {}, [single])
    assert len(mask) == 2 * alone["prompt_attention_mask"].shape[1]
    assert sum(mask) > alone["prompt_attention_mask"].sum()
    together = model.pictures(request, single)
    assert abs(together[1] - model.pictures(single)[0]).max() <= 2


def test_what_is_not_read_of_a_long_prompt_is_told(model: Model) -> None:
    long = "a red star, " * 150
    for syntax in (None, "a1111", "compel"):
        model.events.clear()
        found = model.picture(f"{long}the end", syntax)
        (told,) = [e.message for e in model.events if isinstance(e, Notice)]
        assert "of its 757 tokens, and does not read" in told
        assert equal(found, model.picture(f"{long}no end", syntax))
    assert equal(found, model.picture(f"{long}(no end:0.5)", "a1111"))
    fields: dict[str, Any] = {"extras": (("max_sequence_length", 100),)}
    plain = model.picture(long, **fields)
    assert equal(plain, model.picture(long, "a1111", **fields))
    assert not equal(plain, found)


def test_texts_are_encoded_once_and_images_share_passes(model: Model) -> None:
    from transformers import Gemma2Model

    requests = [
        model.ask(prompt, "a1111", seed=seed)
        for seed, prompt in enumerate(("a (red:1.4) star", "a (blue:0.5) sea", "a star"))
    ]
    together = model.pictures(*requests)
    with mock.patch.object(Gemma2Model, "forward", side_effect=AssertionError):
        alone = [model.pictures(request)[0] for request in requests]
    # A pass of two images computes the last bits otherwise.
    assert all(abs(a - b).max() <= 2 for a, b in zip(alone, together, strict=True))
    loaded = model.backend._loaded
    assert loaded
    loaded.measures.append(memory.MODEL_OFFLOAD)
    model.events.clear()
    again = model.pictures(*requests)
    loaded.measures.remove(memory.MODEL_OFFLOAD)
    assert not any(isinstance(event, Notice) for event in model.events)
    assert all(equal(*pair) for pair in zip(together, again, strict=True))


def _sana_pag() -> LibraryObject:
    from diffusers import SanaPAGPipeline

    own = tiny_language.sana()
    return SanaPAGPipeline(
        tokenizer=tiny_language.gemma_tokenizer(),
        text_encoder=own.text_encoder,
        vae=own.vae,
        transformer=own.transformer,
        scheduler=own.scheduler,
        pag_applied_layers="blocks.0",
    )


def _of_postcard(name: str) -> LibraryObject:
    import diffusers

    own = diffusers.StableDiffusionPipeline.from_pretrained(postcard.FOLDER)
    parts = {name: getattr(own, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    scheduler = diffusers.DDIMScheduler if "Par" not in name else diffusers.DDIMParallelScheduler
    parts |= {"scheduler": scheduler(), "safety_checker": None, "feature_extractor": None}
    return getattr(diffusers, name)(**parts, requires_safety_checker=False)


def _pipelines() -> Iterator[tuple[LibraryObject, dict[str, Any]]]:
    """Further pipelines that share an encoding, and the arguments of their `encode_prompt`."""
    sana = {"complex_human_instruction": ["Say it", "again: "], "max_sequence_length": 40}
    yield _sana_pag(), sana
    yield tiny_language.sana_sprint(), sana
    yield tiny_language.sana(), {"complex_human_instruction": [], "max_sequence_length": 40}
    yield tiny_language.lumina2(), {"system_prompt": "Say it", "max_sequence_length": 40}
    for kind in ("Panorama", "Paradigms", "ModelEditing"):
        yield _of_postcard(f"StableDiffusion{kind}Pipeline"), {}


def test_pipelines_alike_get_their_own_encoding(tmp_path: Path) -> None:
    names = ("prompt_embeds", "prompt_attention_mask")
    for pipe, values in _pipelines():
        spec = ModelSpec(name="mine", pipeline=type(pipe).__name__)
        loaded: LibraryObject = SimpleNamespace(pipe=pipe, spec=spec)
        request = factories.request(prompt="a red star", prompt_syntax="a1111")
        made = weighted_prompts.embedding_arguments(loaded, values, [request])
        if values:
            own = pipe.encode_prompt("a red star", device=pipe.device, **values)[:2]
        else:
            own = pipe.encode_prompt("a red star", pipe.device, 1, False)[:1]
        for name, expected in zip(names, own, strict=False):
            assert (made[name] == expected).all(), (type(pipe).__name__, name)
        weighted = factories.request(prompt="a (red:1.5) star", prompt_syntax="a1111")
        other = weighted_prompts.embedding_arguments(loaded, values, [weighted])
        assert (other[names[0]] != made[names[0]]).any()
