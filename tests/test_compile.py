"""`--compile`: when it is tried, what is kept, remembered and told; twice with a real compiler."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2i_cli.backends import factory
from t2i_cli.backends.local import (
    LocalBackend,
    LocalOptions,
    compilation,
    compile_choice,
    engine_measurements,
)
from t2i_cli.backends.local.device import Device
from t2i_cli.backends.local.engine_measurements import EngineMeasurement
from t2i_cli.backends.local.engine_work import EngineWork
from t2i_cli.backends.local.options import CompileMode
from t2i_cli.events import Event, Notice
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.settings.options import BackendOptions, DeviceOptions
from tests import tiny_models
from tests.conftest import T2I
from tests.fakes import gpu
from tests.test_local_backend import ask, images, make, psnr

CPU = Device(name="cpu", kind="cpu", label="CPU")
CUDA = Device(name="cpu", kind="cuda", label="Fake GPU")
SIZE: dict[str, Any] = {"width": 32, "height": 32, "steps": 3}


class FakeCompiler:
    """Stands in for torch's compiler: calls the network itself, in times that a test chooses.

    A forward takes `eager` seconds, compiled `other`, and `preparation` at its first call, by a
    clock that only these calls move.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.eager, self.other, self.preparation = 1.0, 0.5, 20.0
        self.error: Exception | None = None
        self.factor = 1.0
        self.prepared = self.compiled_calls = 0
        self._now = 0.0
        self._inside = False
        monkeypatch.setattr(time, "perf_counter", lambda: self._now)
        monkeypatch.setattr(compile_choice, "CompiledForward", self._prepare)
        monkeypatch.setattr(compilation, "has_compiler", lambda device: True)
        self._monkeypatch = monkeypatch

    def watch(self, cls: type) -> None:
        """Let a call of the class's forward take its time."""
        forward = cls.forward  # type: ignore[attr-defined]

        def timed(
            module: LibraryObject, *args: LibraryObject, **kwargs: LibraryObject
        ) -> LibraryObject:
            if not self._inside:
                self._now += self.eager
            return forward(module, *args, **kwargs)

        timed.__wrapped__ = forward  # type: ignore[attr-defined]
        self._monkeypatch.setattr(cls, "forward", timed)

    def _prepare(self, network: LibraryObject, forward: Callable[..., Any]) -> Callable[..., Any]:
        first = [True]

        def call(*args: LibraryObject, **kwargs: LibraryObject) -> LibraryObject:
            if self.error:
                raise self.error
            self.prepared += first[0]
            self.compiled_calls += 1
            self._now += self.preparation if first.pop() else self.other
            first.append(False)
            self._inside = True
            try:
                (output,) = forward(*args, **kwargs)
            finally:
                self._inside = False
            return (output * self.factor,)

        return call


@pytest.fixture
def compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> FakeCompiler:
    """The fake compiler, and an empty cache folder."""
    from diffusers import FluxTransformer2DModel

    monkeypatch.setattr(engine_measurements, "user_folder", lambda kind: tmp_path / kind)
    monkeypatch.setattr(compilation, "user_folder", lambda kind: tmp_path / kind)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    made = FakeCompiler(monkeypatch)
    made.watch(FluxTransformer2DModel)
    return made


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save("flux", tmp_path_factory.mktemp("compile") / "flux")


def backend_of(mode: CompileMode, *, device: str | None = "cpu") -> LocalBackend:
    return LocalBackend(LocalOptions(dtype="float32", compile=mode, device=device))


def run(
    backend: LocalBackend, model: Path, count: int = 1, **more: LibraryObject
) -> tuple[list[str], list[str]]:
    """The engines of some images, and what was told."""
    events: list[Event] = []
    asked = [ask(backend, model=model, seed=seed, **(SIZE | more)) for seed in range(count)]
    made = images(make(backend, *asked, events=events))
    return (
        [str(image.info.engine) for image in made],
        [event.message for event in events if isinstance(event, Notice)],
    )


def test_on_compiles_at_once_and_off_never(compiler: FakeCompiler, flux: Path) -> None:
    assert run(backend_of("on"), flux) == (["compiled"], [])
    assert compiler.prepared == 1
    assert run(backend_of("off"), flux) == (["eager"], [])
    assert compiler.prepared == 1


def test_what_is_not_faster_is_told_remembered_and_not_used(
    compiler: FakeCompiler, flux: Path
) -> None:
    compiler.other = 1.0
    engines, told = run(backend_of("on"), flux, 2)
    assert engines == ["eager", "eager"]
    assert told == [
        "Compiled code is not faster here (1000 ms a step, 1000 ms without), so it is not used."
    ]
    prepared = compiler.prepared
    engines, told = run(backend_of("on"), flux)
    assert (engines, compiler.prepared) == (["eager"], prepared)
    assert told == ["Compiled code was measured here before, and is not faster."]
    # Of other shapes nothing is known.
    compiler.other = 0.5
    assert run(backend_of("on"), flux, width=64)[0] == ["compiled"]


def test_what_is_faster_is_remembered_and_not_measured_again(
    compiler: FakeCompiler, flux: Path
) -> None:
    run(backend_of("on"), flux)
    first = compiler.compiled_calls
    assert run(backend_of("on"), flux)[0] == ["compiled"]
    # Three steps; the first time each of three comparisons was another call.
    assert (first, compiler.compiled_calls - first) == (3 + 3, 3)


@pytest.mark.parametrize("fault", ["raises", "differs", "memory"])
def test_a_failure_is_told_once_and_the_image_is_made_eagerly(
    fault: str, compiler: FakeCompiler, flux: Path
) -> None:
    expected = images(make(backend_of("off"), ask(backend_of("off"), model=flux, **SIZE)))
    if fault == "differs":
        compiler.factor = 1.5
    else:
        compiler.error = gpu.out_of_memory() if fault == "memory" else RuntimeError("no lowering")
    backend = backend_of("on")
    events: list[Event] = []
    made = images(make(backend, *[ask(backend, model=flux, **SIZE)] * 2, events=events))
    assert [image.info.engine for image in made] == ["eager", "eager"]
    assert made[0].info.measures == ()
    assert psnr(made[0], expected[0]) == float("inf")
    (told,) = [event.message for event in events if isinstance(event, Notice)]
    assert told.startswith("Compiling is left out: ")


def test_a_missing_compiler_is_told_where_it_was_asked_for(
    compiler: FakeCompiler, flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "has_compiler", lambda device: False)
    engines, told = run(backend_of("on"), flux, 2)
    assert engines == ["eager", "eager"]
    assert told == [
        "Compiling is left out: there is no compiler: torch needs g++ or clang++, on a GPU also "
        "Triton."
    ]


@pytest.mark.parametrize(
    ("images_left", "engines"),
    [(1, ["eager"]), (8, ["eager"] * 8), (14, ["eager"] + ["compiled"] * 13)],
)
def test_auto_compiles_where_the_images_left_repay_it(
    images_left: int,
    engines: list[str],
    compiler: FakeCompiler,
    flux: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """4 s an image, of which 0.15 may be saved: 13 images save 7.8 s, and 5 s x 1.5 are needed."""
    gpu.install(monkeypatch, free=8 * 10**9, fake=CUDA)
    monkeypatch.setattr(engine_measurements, "synchronize", lambda device: None)
    monkeypatch.setattr(compile_choice, "synchronize", lambda device: None)
    monkeypatch.setattr("t2i_cli.backends.local.engine_work.synchronize", lambda device: None)
    monkeypatch.setattr(compilation, "_REGIONAL_SECONDS", 5.0)
    backend = backend_of("auto", device=None)
    assert run(backend, flux, images_left, steps=4) == (engines, [])


def test_auto_counts_the_work_that_a_server_has_seen(
    compiler: FakeCompiler, flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.install(monkeypatch, free=8 * 10**9, fake=CUDA)
    for module in (engine_measurements, compile_choice):
        monkeypatch.setattr(module, "synchronize", lambda device: None)
    monkeypatch.setattr("t2i_cli.backends.local.engine_work.synchronize", lambda device: None)
    monkeypatch.setattr(compilation, "_REGIONAL_SECONDS", 2.0)
    backend = backend_of("auto", device=None)
    engines = [run(backend, flux, steps=4)[0][0] for _ in range(8)]
    assert engines == ["eager"] * 5 + ["compiled"] * 3


def test_auto_never_compiles_on_a_cpu_unless_it_was_measured_to_help(
    compiler: FakeCompiler, flux: Path
) -> None:
    assert run(backend_of("auto"), flux, 20, steps=4)[0] == ["eager"] * 20
    compiler.preparation = 1.0
    run(backend_of("on"), flux, steps=4)
    assert run(backend_of("auto"), flux, 20, steps=4)[0] == ["eager"] + ["compiled"] * 19


def test_offloaded_and_hooked_networks_are_not_compiled(
    compiler: FakeCompiler, flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.install(monkeypatch, free=8 * 10**9)
    options = LocalOptions(dtype="float32", compile="on", memory="low")
    engines, told = run(LocalBackend(options), flux)
    assert engines == ["eager"]
    assert told == ["Compiling is left out: the model's weights are offloaded."]
    assert compiler.prepared == 0


def test_work_left_is_what_is_known_or_as_much_as_was_seen() -> None:
    work = EngineWork(CPU)
    assert work.seconds_left() == 0
    work.start_group(10)
    work.seconds_per_call = 2.0
    for _ in range(4):
        work.begin_pass(measuring=False)
        for _ in range(6):
            work.count_call()
        work.end_pass(2)
    # Two of ten images are left: of three calls of two seconds each.
    assert work.seconds_left() == 2 * 3 * 2.0
    work.start_group(1)
    assert work.seconds_left() == 8 * 3 * 2.0


def test_measurements_survive_damage_and_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_measurements, "user_folder", lambda kind: tmp_path)
    file = engine_measurements.measurements_path()
    good = EngineMeasurement(eager=2.0, other=1.0, preparation=3.0)
    engine_measurements.remember_measurement("engine=compiled; gpu=A", good)
    assert engine_measurements.lookup_measurement("engine=compiled; gpu=A") == good
    assert engine_measurements.has_faster({"engine": "compiled"}, 1.9)
    assert not engine_measurements.has_faster({"engine": "compiled"}, 2.1)
    record = json.loads(file.read_text())
    bad: tuple[object, ...] = (None, 3, {"eager": "2"}, {"eager": 1.0, "other": -1.0}, [1.0])
    record["seconds"] |= {f"bad{number}": value for number, value in enumerate(bad)}
    file.write_text(json.dumps(record))
    assert engine_measurements.lookup_measurement("engine=compiled; gpu=A") == good
    for number in range(len(bad)):
        assert engine_measurements.lookup_measurement(f"bad{number}") is None
    damaged = ("", "{", "[]", "null", '{"format": 2, "seconds": {}}', '{"format": 1, "seconds": 3}')
    for text in damaged:
        file.write_text(text)
        assert engine_measurements.lookup_measurement("engine=compiled; gpu=A") is None
    for number in range(600):
        engine_measurements.remember_measurement(str(number), good)
    assert len(json.loads(file.read_text())["seconds"]) == 500
    assert engine_measurements.lookup_measurement("99") is None


@pytest.mark.parametrize("strict", [False, True])
def test_the_option_the_setting_and_strict(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[LocalOptions] = []
    monkeypatch.setattr(factory, "create_local_backend", given.append)

    def made(option: str | None) -> str:
        device = replace(DeviceOptions(), compile=option)
        factory.create_backend(BackendOptions(device=device), strict=strict)
        return given[-1].compile

    assert made(None) == ("off" if strict else "auto")
    assert made("on") == "on"
    monkeypatch.setenv("T2I_COMPILE", "off")
    assert made(None) == "off"
    assert made("on") == "on"


# With torch's own compiler, in processes of their own: imports were deferred there before.

_TRANSFORMER = """
import json, sys
from t2i_cli.models import libraries
libraries.import_diffusers()
import torch
from t2i_cli.backends.local import compilation
from t2i_cli.backends.local.device import Device
from diffusers import FluxTransformer2DModel

compilation.keep_compiled_code(Device(name="cpu", kind="cpu", label="CPU"))
torch.manual_seed(0)
network = FluxTransformer2DModel(
    in_channels=4, num_layers=0, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
).eval()
inputs = dict(
    hidden_states=torch.randn(1, 16, 4), encoder_hidden_states=torch.randn(1, 8, 32),
    pooled_projections=torch.randn(1, 32), timestep=torch.tensor([0.5]),
    img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(8, 3), return_dict=False,
)
with torch.no_grad():
    expected = network(**inputs)[0]
    compiled = compilation.CompiledForward(network, network.forward)
    output = compiled(**inputs)[0]
    again = network(**inputs)[0]
from torch._dynamo.utils import counters
print(json.dumps({
    "close": torch.allclose(output, expected, atol=1e-4),
    "eager again": torch.equal(again, expected),
    "graphs": counters["stats"]["unique_graphs"],
    "hits": counters["aot_autograd"]["autograd_cache_hit"]
    + counters["inductor"]["fxgraph_cache_hit"],
}))
"""


def _compile_transformer(env: dict[str, str]) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", _TRANSFORMER], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.full
def test_torch_compiles_a_networks_blocks(t2i_env: dict[str, str]) -> None:
    found = _compile_transformer(t2i_env)
    assert found == {"close": True, "eager again": True, "graphs": 1, "hits": 0}


@pytest.mark.full
def test_compiled_code_is_kept_and_postcard_is_compiled(
    t2i: T2I, t2i_env: dict[str, str], tmp_path: Path
) -> None:
    _compile_transformer(t2i_env)
    assert _compile_transformer(t2i_env)["hits"]
    plain = t2i("generate", "-m", "postcard", "a red star", "--seed", "1", "-o", "eager.png")
    assert plain.returncode == 0
    done = t2i(
        *("generate", "-m", "postcard", "a red star", "--seed", "1", "-o", "compiled.png"),
        *("--compile", "on", "--json"),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    # Which is faster depends on the machine; what is used is told.
    assert record["engine"] == "compiled" or "Compiled code is not faster here" in done.stderr
    eager, compiled = (
        np.asarray(Image.open(tmp_path / name), dtype=np.float64)
        for name in ("eager.png", "compiled.png")
    )
    assert np.abs(eager - compiled).max() <= 2
