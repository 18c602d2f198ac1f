"""With model offload, the texts of all passes are encoded before the first image is denoised."""

import pytest

from t2i_cli.backends.local import LocalBackend, LocalOptions, encode_ahead, loading, memory
from t2i_cli.backends.local.memory import MODEL_OFFLOAD, Measures
from t2i_cli.events import Event, Notice
from t2i_cli.models.libraries import LibraryObject
from tests.fakes import gpu
from tests.test_local_backend import ask, images, make

PROMPTS = ("a red star", "a blue house", "a green circle", "a red star")


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of networks in their order, on a GPU that is not there."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    gpu.install(monkeypatch, free=8 * 10**9)
    called: list[str] = []
    for name, cls in (("text", CLIPTextModel), ("unet", UNet2DConditionModel)):
        real = cls.forward

        def forward(
            model: LibraryObject,
            *args: LibraryObject,
            real: LibraryObject = real,
            name: str = name,
            **kwargs: LibraryObject,
        ) -> LibraryObject:
            called.append(name)
            return real(model, *args, **kwargs)

        monkeypatch.setattr(cls, "forward", forward)
    return called


def run(monkeypatch: pytest.MonkeyPatch, measures: Measures, events: list[Event]) -> list[bytes]:
    """The pixels of the prompts' images, each made alone."""
    monkeypatch.setattr(memory, "choose_measures", lambda *_, **__: measures)
    backend = LocalBackend(LocalOptions(batch_size=1, dtype="float32"))
    requests = [
        ask(backend, prompt=prompt, negative_prompt="grey", steps=1, seed=seed)
        for seed, prompt in enumerate(PROMPTS)
    ]
    made = images(make(backend, *requests, events=events))
    backend.close()
    return [one.image.tobytes() for one in made]


def test_texts_are_encoded_before_the_first_image(
    order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(monkeypatch, (), [])
    assert order == ["text", "text", "unet", "text", "unet", "text", "unet", "unet"]
    order.clear()
    ahead = run(monkeypatch, (MODEL_OFFLOAD,), [])
    assert order == ["text"] * 4 + ["unet"] * 4, "three prompts, and the negative one"
    assert ahead == plain


def test_convolutions_are_channels_last_also_with_model_offload(
    order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(memory, "choose_measures", lambda *_, **__: (MODEL_OFFLOAD,))
    found: list[loading.LoadedPipeline] = []
    load = loading.load_pipeline

    def watched(*args: LibraryObject, **kwargs: LibraryObject) -> loading.LoadedPipeline:
        found.append(load(*args, **kwargs))
        return found[0]

    monkeypatch.setattr(loading, "load_pipeline", watched)
    backend = LocalBackend(LocalOptions(batch_size=1, dtype="float32"))
    make(backend, ask(backend, prompt=PROMPTS[0], steps=1))
    for network in (found[0].pipe.unet, found[0].pipe.vae):
        wide = [w for w in network.parameters() if w.dim() == 4 and min(w.shape[1:3]) > 1]
        assert wide
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in wide)
    backend.close()


def test_what_cannot_be_encoded_ahead_is_told_once_and_made(
    order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(monkeypatch, (), [])
    events: list[Event] = []
    with monkeypatch.context() as patch:
        gpu.Failing(patch, encode_ahead, "_encode", at=[2])
        ahead = run(monkeypatch, (MODEL_OFFLOAD,), events)
    assert ahead == plain
    told = [event.message for event in events if isinstance(event, Notice)]
    assert [message for message in told if "encoded ahead" in message] == [
        "Prompts are not encoded ahead of their passes: XPU out of memory. Tried to allocate "
        "2.00 GiB."
    ]
