"""Measures that plans name, on a GPU that computes on the CPU: the same picture as without them."""

from pathlib import Path
from typing import Any

import pytest

from t2i_cli.backends.local import LocalBackend, LocalOptions, device, memory, weight_offload
from t2i_cli.backends.local.device import Device, MemoryInfo
from t2i_cli.models import libraries
from t2i_cli.models.libraries import LibraryObject
from tests import tiny_models
from tests.fakes import gpu
from tests.test_local_backend import ask, images, make

GB = 10**9
SETS = sorted(set(memory.candidate_measures(gpu.FAKE)) - {()})


def made(folder: Path, measures: memory.Measures, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The pixels of two images of different prompts, with these measures planned."""
    monkeypatch.setattr(memory, "choose_measures", lambda *_, **__: measures)
    backend = LocalBackend(LocalOptions(dtype="float32", batch_size=1, lenient=True))
    size: dict[str, Any] = {"model": folder, "width": 32, "height": 32, "steps": 2}
    both = [ask(backend, **size), ask(backend, prompt="a blue barn", **size)]
    outcomes = images(make(backend, *both))
    assert all(set(measures) <= set(outcome.info.measures) for outcome in outcomes)
    backend.close()
    return [outcome.image.tobytes() for outcome in outcomes]


@pytest.mark.parametrize(
    "family",
    [
        "sdxl",
        *(
            pytest.param(each, marks=pytest.mark.full)
            for each in ("sd3", "flux", "flux2-klein", "qwen-image", "z-image", "sana", "pixart")
        ),
    ],
)
def test_every_planned_set_of_measures_makes_the_plain_picture(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.install(monkeypatch, free=8 * GB)
    folder = tiny_models.save(family, tmp_path / family)
    plain = made(folder, (), monkeypatch)
    for measures in SETS:
        assert made(folder, measures, monkeypatch) == plain, measures


class Moves:
    """Where text encoders and the denoiser are moved, in order."""

    def __init__(self, pipe: LibraryObject) -> None:
        self.seen: list[str] = []
        for name in ("text_encoder", "text_encoder_2", "unet"):
            self._watch(name, getattr(pipe, name))

    def _watch(self, name: str, network: LibraryObject) -> None:
        forward = network._call_impl

        def to(place: LibraryObject, *_: object, **__: object) -> LibraryObject:
            self.seen.append(f"{name} to {place}")
            return network

        def run(*args: object, **kwargs: object) -> LibraryObject:
            self.seen.append(f"{name} runs")
            return forward(*args, **kwargs)

        network._call_impl = run

        network.to = to


def generate(pipe: LibraryObject) -> None:
    with libraries.suppress_warnings():
        pipe("a boat", num_inference_steps=1, width=32, height=32, guidance_scale=1.0)


def test_text_encoders_come_for_a_new_prompt_and_leave_before_the_steps(tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    folder = tiny_models.save("sdxl", tmp_path / "sdxl")
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    assert list(weight_offload.idle_text_encoders(pipe)) == ["text_encoder", "text_encoder_2"]
    moves = Moves(pipe)
    weight_offload.offload_text_encoders(pipe, gpu.FAKE)
    assert set(moves.seen) == {"text_encoder to cpu", "text_encoder_2 to cpu", "unet to cpu"}
    moves.seen.clear()
    generate(pipe)
    leave = ["text_encoder to cpu", "text_encoder_2 to cpu"]
    arrive = [["text_encoder runs", leave[0]], ["text_encoder_2 runs", leave[1]]]
    assert moves.seen == [*arrive[0], *arrive[1], "unet runs", *leave]
    weight_offload.remove_hooks(pipe)
    moves.seen.clear()
    generate(pipe)
    assert moves.seen == ["text_encoder runs", "text_encoder_2 runs", "unet runs"]


def test_a_pipeline_whose_encoders_are_not_idle_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    empty = SimpleNamespace(model_cpu_offload_seq=None, unet=object(), text_encoder=object())
    assert weight_offload.idle_text_encoders(empty) == {}
    other = SimpleNamespace(model_cpu_offload_seq="text_encoder->prior->vqgan", prior=object())
    assert weight_offload.idle_text_encoders(other) == {}


class Groups:
    """A pipeline that records how group offload is enabled, and fails where it is told to."""

    def __init__(self, *fails: tuple[bool, bool]) -> None:
        self.asked: list[tuple[bool, bool]] = []
        self.components: dict[str, LibraryObject] = {}
        self._fails = fails

    def to(self, *_: object, **__: object) -> None:
        """It is moved to the host first."""

    def remove_all_hooks(self) -> None:
        """A failed attempt is undone."""
        self.asked.append((False, True))

    def enable_group_offload(
        self, *, use_stream: bool, low_cpu_mem_usage: bool, **_: object
    ) -> None:
        asked = (use_stream, low_cpu_mem_usage)
        self.asked.append(asked)
        if asked in self._fails:
            raise RuntimeError("cudaHostAlloc: out of memory")


@pytest.mark.parametrize(
    ("kind", "host", "fails", "asked", "note"),
    [
        ("cuda", 8, [], [(True, False)], None),
        ("cuda", 3, [], [(True, True)], "too little free memory to pin"),
        ("cuda", 8, [(True, False)], [(True, False), (False, True), (True, True)], "to pin"),
        (
            "cuda",
            3,
            [(True, True)],
            [(True, True), (False, True), (False, False)],
            "cannot be copied beside",
        ),
        ("xpu", 8, [], [(False, False)], None),
    ],
)
def test_weights_are_pinned_where_the_host_has_room(
    kind: LibraryObject,
    host: int,
    fails: list[tuple[bool, bool]],
    asked: list[tuple[bool, bool]],
    note: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "host_memory", lambda: MemoryInfo(free=host * GB, total=16 * GB))
    monkeypatch.setattr(device, "clear_cache", lambda _: None)
    pipe = Groups(*fails)
    place = Device(name=f"{kind}:0", kind=kind, label="")
    said = weight_offload.offload_groups(pipe, place, 4 * GB)
    assert pipe.asked == asked
    assert (note is None and said is None) or (note and said and note in said)
