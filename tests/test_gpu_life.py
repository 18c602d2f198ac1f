"""On a card: what a run leaves behind, out of memory for real, cancelled, and two at a time.

`T2I_TEST_DEVICE=cpu pytest -m gpu tests/test_gpu_life.py` tries the tests on the fake GPU and, for
processes, on the CPU; there, running out is faked at the same places.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import models
from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions, device
from t2i_cli.backends.local.device import Device
from t2i_cli.backends.local.memory import VAE_TILING
from t2i_cli.events import Event, Step
from t2i_cli.models.libraries import LibraryObject
from tests.fakes import gpu
from tests.gpu_place import held_bytes, is_real, run_cancelled, run_on
from tests.gpu_place import place as place
from tests.processes import until
from tests.test_local_backend import ask, images, make, pixels, psnr

pytestmark = pytest.mark.gpu

MIB = 2**20
STEPS = 10
SLACK = 64 * MIB
"""Bytes that a process may still take when memory is made scarce, and that count as nothing."""
PROMPT = "a red star on a white background"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Device], Path | str]:
    """On a card the shape of Stable Diffusion 1.5 in half precision; postcard's bytes are few."""
    folder = tmp_path_factory.mktemp("life") / "sd15"

    def found(place: Device) -> Path | str:
        if not is_real(place):
            return "postcard"
        return folder if folder.exists() else models.folder("sd15", folder)

    return found


def size(place: Device) -> dict[str, Any]:
    """The request's size: one at which the decode needs more than the denoiser."""
    side = 768 if is_real(place) else 128
    return {"width": side, "height": side, "steps": STEPS}


def check_same(place: Device, plain: GeneratedImage, found: GeneratedImage) -> None:
    """The picture is the plain run's; a VAE with random weights shows where tiles meet."""
    tiled = is_real(place) and VAE_TILING in found.info.measures
    assert psnr(plain, found) >= (20 if tiled else 40)


def free_bytes(place: Device) -> int:
    """What any process may still allocate on the card."""
    return device.device_memory(place).free


class Scarcity:
    """Makes memory run out at a moment, on a card by the allocator's own limit.

    The plan sees the whole card (`memory_fraction` does not change what is free).
    """

    def __init__(self, place: Device, monkeypatch: pytest.MonkeyPatch) -> None:
        self._place = place
        self._monkeypatch = monkeypatch

    def limit(self, extra: int) -> None:
        """Leave `extra` bytes beyond those that are allocated now."""
        import torch

        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(self._place.name).total_memory
        # The limit is on what torch has reserved, of which the empty part was just given back.
        used = torch.cuda.memory_reserved(self._place.name)
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, (used + extra) / total), self._place.name
        )

    def lift(self) -> None:
        """Give everything back."""
        if is_real(self._place):
            import torch

            torch.cuda.set_per_process_memory_fraction(1.0, self._place.name)

    def at_load(self) -> None:
        """Half of the model's weights do not fit."""
        if is_real(self._place):
            return self.limit(1200 * MIB)
        from diffusers import DiffusionPipeline

        gpu.Failing(self._monkeypatch, DiffusionPipeline, "to", (1,))

    def in_denoiser(self) -> None:
        """The next step has no room."""
        if is_real(self._place):
            return self.limit(SLACK)
        from diffusers import UNet2DConditionModel

        gpu.Failing(self._monkeypatch, UNet2DConditionModel, "forward", (1, 2))

    def in_decode(self) -> None:
        """The decode of the whole image has no room."""
        if is_real(self._place):
            return self.limit(SLACK)
        from diffusers import AutoencoderKL

        # The wrapper of t2i holds the bound method, which calls this one.
        gpu.Failing(self._monkeypatch, AutoencoderKL, "_decode", (1,))


@pytest.fixture
def scarcity(place: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scarcity]:
    found = Scarcity(place, monkeypatch)
    yield found
    found.lift()


def test_a_replayed_graph_is_bit_equal_to_eager(
    place: Device, model: Callable[[Device], Path | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    usual = run_on(place, model(place), **size(place))
    engine = getattr(usual.info, "engine", None)
    if is_real(place) and place.kind == "cuda":
        assert engine == "cuda-graph"

    def capture_begin(*_: object, **__: object) -> None:
        raise RuntimeError("no graph is recorded in this test")

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", capture_begin)
    eager = run_on(place, model(place), **size(place))
    assert getattr(eager.info, "engine", None) in {None, "eager"}
    assert (pixels(usual) == pixels(eager)).all()


def test_an_image_alone_is_the_one_of_a_pass(
    place: Device, model: Callable[[Device], Path | str]
) -> None:
    backend = LocalBackend(LocalOptions(device=place.name, batch_size=4))
    requests = [ask(backend, model=model(place), seed=seed, **size(place)) for seed in range(4)]
    together = images(make(backend, *requests))
    assert {image.info.batch_size for image in together} == {4}
    alone = [images(make(backend, request))[0] for request in requests]
    assert {image.info.batch_size for image in alone} == {1}
    for one, other in zip(together, alone, strict=True):
        assert psnr(one, other) >= 40
    assert psnr(alone[0], alone[1]) < 40
    backend.close()


def test_memory_runs_out_while_the_model_is_moved(
    place: Device, model: Callable[[Device], Path | str], scarcity: Scarcity
) -> None:
    plain = run_on(place, model(place), **size(place))
    scarcity.at_load()
    found = run_on(place, model(place), **size(place))
    assert found.info.measures
    check_same(place, plain, found)


@pytest.mark.parametrize("moment", ["step 3", "decode"])
def test_memory_runs_out_in_a_run(
    moment: str, place: Device, model: Callable[[Device], Path | str], scarcity: Scarcity
) -> None:
    plain = run_on(place, model(place), **size(place))
    told: list[int] = []

    class Events(list[Event]):
        def append(self, event: Event) -> None:
            if isinstance(event, Step):
                told.append(event.step)
                if moment == "step 3" and len(told) == 3:
                    scarcity.in_denoiser()
                if moment == "decode" and len(told) == STEPS:
                    scarcity.in_decode()

    found = run_on(place, model(place), events=Events(), **size(place))
    assert found.info.measures
    check_same(place, plain, found)
    if moment == "decode":
        assert told == list(range(1, STEPS + 1)), "a decode that fails costs no step"
    scarcity.lift()
    after = run_on(place, model(place), **size(place))
    assert (pixels(plain) == pixels(after)).all()


def test_a_cancelled_run_leaves_the_model_as_it_was(
    place: Device, model: Callable[[Device], Path | str]
) -> None:
    backend = LocalBackend(LocalOptions(device=place.name))
    request = ask(backend, model=model(place), **size(place))
    (plain,) = images(make(backend, request))
    held = held_bytes(place)
    assert run_cancelled(backend, [request, request], step=3) == (0, 3)
    assert held_bytes(place) <= held + MIB
    (after,) = images(make(backend, request))
    assert (pixels(plain) == pixels(after)).all()
    backend.close()


def test_memory_after_200_images_is_that_after_10(place: Device) -> None:
    backend = LocalBackend(LocalOptions(device=place.name))
    requests = [ask(backend, seed=seed, steps=1) for seed in range(50)]
    images(make(backend, *requests[:10]))
    held = held_bytes(place)
    for _ in range(4 if is_real(place) else 1):
        images(make(backend, *requests))
    assert held_bytes(place) <= held + MIB // 2
    backend.close()
    assert held_bytes(place) < held


@contextmanager
def started(
    env: dict[str, str], folder: Path, *arguments: str
) -> Iterator["subprocess.Popen[str]"]:
    """`t2i` as a process whose stderr goes to a file, ended with the block."""
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "t2i_cli", *arguments],
            env=env,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture
def card_env(t2i_env: dict[str, str]) -> dict[str, str]:
    """A process's environment with the variables that choose a card."""
    names = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "PYTHONPATH")
    return t2i_env | {name: os.environ[name] for name in names if name in os.environ}


def test_ctrl_c_in_a_step_frees_the_card(
    place: Device, card_env: dict[str, str], tmp_path: Path
) -> None:
    before = free_bytes(place) if is_real(place) else 0
    (tmp_path / "prompts.txt").write_text(PROMPT)
    arguments = ("batch", "prompts.txt", "-m", "postcard", "--steps", "900", "--events")
    with started(card_env, tmp_path, *arguments, "--device", place.name) as process:
        log = tmp_path / "stderr"
        until(lambda: '"step": 3,' in log.read_text(), process)
        process.send_signal(signal.SIGINT)
        # The first one finishes the image, for which a card needs seconds only.
        until(lambda: '"step": 30,' in log.read_text(), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, log.read_text()
    assert not list(tmp_path.rglob("*.png"))
    assert "Traceback" not in log.read_text()
    if is_real(place):
        assert free_bytes(place) >= before - SLACK


def test_two_processes_share_a_card(
    place: Device, card_env: dict[str, str], tmp_path: Path
) -> None:
    found = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
    arguments = ["generate", PROMPT, "-m", "postcard", "--seed", "1", "-n", "4", "--json"]
    arguments += ["--device", place.name]
    with (
        started(card_env, tmp_path / "0", *arguments) as one,
        started(card_env, tmp_path / "1", *arguments) as other,
    ):
        for process in (one, other):
            lines = process.communicate(timeout=300)[0].splitlines()
            assert process.returncode == 0
            found.append([json.loads(line)["path"] for line in lines])
    pictures = [
        [(tmp_path / str(number) / name).read_bytes() for name in names]
        for number, names in enumerate(found)
    ]
    assert len(pictures[0]) == 4
    assert pictures[0] == pictures[1]


def test_a_worker_that_leaves_frees_the_card(
    place: Device, card_env: dict[str, str], tmp_path: Path
) -> None:
    before = free_bytes(place) if is_real(place) else 0
    # A socket's path is short.
    with tempfile.TemporaryDirectory(prefix="t2i-") as runtime:
        env = card_env | {"XDG_RUNTIME_DIR": runtime}
        arguments = ("generate", PROMPT, "-m", "postcard", "--keep-alive", "5m")

        def finished(*arguments: str) -> str:
            with started(env, tmp_path, *arguments) as process:
                said = process.communicate(timeout=300)[0]
                assert process.returncode == 0, (tmp_path / "stderr").read_text()
                return said

        finished(*arguments, "--device", place.name)
        state = json.loads(finished("worker", "status", "--json"))
        worker = psutil.Process(state["pid"])
        if is_real(place):
            assert free_bytes(place) < before - SLACK
        finished("worker", "stop")
        worker.wait(60)
    if is_real(place):
        assert free_bytes(place) >= before - SLACK


def test_the_cache_of_a_closed_backend_is_empty(
    place: Device, model: Callable[[Device], Path | str]
) -> None:
    """After the model is unloaded another process finds the memory that it had."""
    run_on(place, model(place), **size(place))
    before = free_bytes(place)
    image: GeneratedImage = run_on(place, model(place), **size(place))
    assert image.info.device == place.name
    assert free_bytes(place) >= before - SLACK
    assert not [one for one in _live_networks() if next(one.parameters()).device.type == "cuda"]


def _live_networks() -> list[LibraryObject]:
    """UNets that are still alive."""
    import gc

    from diffusers import UNet2DConditionModel

    gc.collect()
    return [one for one in gc.get_objects() if type(one) is UNet2DConditionModel]
