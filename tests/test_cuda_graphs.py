"""CUDA graphs, on a GPU that is not there: what is recorded, replayed, dropped, and told.

The recorder is `tests/fakes/recorder.py`; networks, pipelines and schedulers are real.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.numpy import save_file

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions, cuda_graphs, denoiser_engine
from t2i_cli.backends.local.call_signature import network_state
from t2i_cli.backends.local.cuda_graphs import MAX_RECORDINGS, GraphedForward
from t2i_cli.backends.local.device import Device
from t2i_cli.events import Event, Notice, Preview, Step
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request_adapters import parse_loras
from tests import tiny_models
from tests.fakes import gpu
from tests.fakes.recorder import FakeRecorder
from tests.test_local_backend import ask, images, make, pixels

CUDA = Device(name="cpu", kind="cuda", label="Fake GPU")
GB = 10**9
OPTIONS = LocalOptions(dtype="float32")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL, whose UNet takes nested arguments (`added_cond_kwargs`)."""
    return tiny_models.save("sdxl", tmp_path_factory.mktemp("graphs") / "sdxl")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRecorder]:
    """The recorder of the fake GPU, which is this machine's best device."""
    import torch

    gpu.install(monkeypatch, free=8 * GB, fake=CUDA)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    made = FakeRecorder()
    monkeypatch.setattr(denoiser_engine, "new_recorder", lambda device: made)
    yield made


def unet_of(backend: LocalBackend) -> LibraryObject:
    loaded = backend._loaded
    assert loaded is not None
    return loaded.pipe.unet


def same(ones: Sequence[GeneratedImage], others: Sequence[GeneratedImage]) -> bool:
    return all((pixels(a) == pixels(b)).all() for a, b in zip(ones, others, strict=True))


def eager(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], list[GeneratedImage]]
) -> list[GeneratedImage]:
    """What a run makes without graphs."""
    with monkeypatch.context() as patched:
        patched.setattr(cuda_graphs, "MIN_STEPS", 1000)
        return run()


def notices(events: Sequence[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Notice)]


def test_an_image_is_replayed_and_is_the_eager_one(
    sdxl: Path, recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, plain = LocalBackend(OPTIONS), LocalBackend(OPTIONS)
    events: list[Event] = []

    def run(one: LocalBackend) -> list[GeneratedImage]:
        asked = [ask(one, model=sdxl, steps=8, seed=seed) for seed in (1, 2)]
        return images(make(one, *asked, events=events))

    made, expected = run(backend), eager(monkeypatch, lambda: run(plain))
    assert same(made, expected)
    assert [image.info.engine for image in made] == ["cuda-graph"] * 2
    assert [image.info.engine for image in expected] == ["eager"] * 2
    assert {image.info.attention for image in made} == {"sdpa"}
    # Two steps are computed before the recording, and the third beside the first replay.
    assert (recorder.recorded, recorder.replayed) == (1, 6 + 8)
    assert notices(events) == []
    assert "forward" not in vars(unet_of(backend))


def test_a_recording_has_the_loras_of_its_image(
    sdxl: Path, recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    random = np.random.default_rng(2)
    files = []
    for name in ("one", "other"):
        start = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_"
        factors = {f"{start}A.weight": (2, 64), f"{start}B.weight": (64, 2)}
        tensors = {key: random.standard_normal(size) for key, size in factors.items()}
        path = tmp_path / f"{name}.safetensors"
        save_file({key: each.astype(np.float32) for key, each in tensors.items()}, str(path))
        files.append(str(path))
    sets = [None, files[0], f"{files[0]}:0.5", files[1], None]

    def run() -> list[GeneratedImage]:
        backend = LocalBackend(OPTIONS)
        made: list[GeneratedImage] = []
        for each in sets:
            loras = parse_loras([each]) if each else None
            made += images(make(backend, ask(backend, model=sdxl, steps=8, loras=loras)))
        return made

    made = run()
    assert {image.info.engine for image in made} == {"cuda-graph"}
    assert recorder.recorded == len(sets)
    assert same(made, eager(monkeypatch, run))
    assert same(made[:1], made[-1:])
    assert len({pixels(image).tobytes() for image in made}) == len(sets) - 1


def test_few_steps_and_transformers_are_computed_eagerly(
    sdxl: Path, recorder: FakeRecorder, tmp_path: Path
) -> None:
    backend = LocalBackend(OPTIONS)
    (few,) = images(make(backend, ask(backend, model=sdxl, steps=7)))
    flux = tiny_models.save("flux", tmp_path / "flux")
    (transformer,) = images(make(backend, ask(backend, model=flux, steps=2, width=64, height=64)))
    assert (few.info.engine, transformer.info.engine) == ("eager", "eager")
    assert recorder.recorded == 0


@pytest.mark.parametrize(
    "change",
    ["guidance", *(pytest.param(n, marks=pytest.mark.full) for n in ("scheduler", "batch"))],
)
def test_requests_that_differ_have_recordings_of_their_own(
    change: str, sdxl: Path, recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guidance halves the batch; Heun's times are float32; a batch of two has other shapes."""
    options = LocalOptions(dtype="float32", batch_size=2)

    def run() -> list[GeneratedImage]:
        backend = LocalBackend(options)
        every: dict[str, list[dict[str, Any]]] = {
            "guidance": [{}, {"guidance_scale": 1.0}, {}],
            "scheduler": [{}, {"scheduler": "heun"}, {"scheduler": "dpm++2m"}],
            "batch": [{"seed": 2}, {"seed": 3}, {"seed": 4}],
        }
        asked = [ask(backend, model=sdxl, steps=8, **fields) for fields in every[change]]
        return images(make(backend, *asked))

    made = run()
    recorded = recorder.recorded
    assert same(made, eager(monkeypatch, run))
    assert {image.info.engine for image in made} == {"cuda-graph"}
    assert recorded == 2


def test_a_cancelled_run_and_previews_leave_recordings_usable(
    sdxl: Path, recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, cancel, events = LocalBackend(OPTIONS), threading.Event(), list[Event]()
    request = ask(backend, model=sdxl, steps=9)

    def on_event(event: Event) -> None:
        if isinstance(event, Step) and event.step == 5:
            cancel.set()

    assert list(backend.run([request], on_event, cancel)) == []
    assert recorder.replayed == 3
    outcomes = list(backend.run([request], events.append, threading.Event(), [3]))
    assert len([event for event in events if isinstance(event, Preview)]) == 3
    assert recorder.recorded == 1
    plain = LocalBackend(OPTIONS)
    assert same(images(outcomes), eager(monkeypatch, lambda: images(make(plain, request))))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"recording": [1]}, "operation not permitted"),
        pytest.param({"replay": [1]}, "operation not permitted", marks=pytest.mark.full),
        pytest.param({"replay": [5]}, "operation not permitted", marks=pytest.mark.full),
        ({"wrong": [1]}, "its output differed"),
        ({"replay": [4], "error": gpu.out_of_memory}, "out of memory"),
    ],
)
def test_a_failure_is_told_once_and_loses_no_step(
    fault: dict[str, object],
    told: str,
    sdxl: Path,
    recorder: FakeRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder.fail(**fault)  # type: ignore[arg-type]
    events: list[Event] = []

    def run(one: LocalBackend) -> list[GeneratedImage]:
        asked = [ask(one, model=sdxl, steps=8, seed=seed) for seed in (1, 2)]
        return images(make(one, *asked, events=events))

    made = run(LocalBackend(OPTIONS))
    assert [event.step for event in events if isinstance(event, Step)] == [*range(1, 9)] * 2
    (sentence,) = notices(events)
    assert sentence.startswith("CUDA graphs are left out")
    assert told in sentence
    assert (recorder.held, recorder.recorded) in {(0, 0), (0, 1)}
    assert made[1].info.engine == "eager"
    assert same(made, eager(monkeypatch, lambda: run(LocalBackend(OPTIONS))))


def test_where_memory_runs_out_at_a_recording_smaller_ones_go_on(
    sdxl: Path, recorder: FakeRecorder
) -> None:
    recorder.fail(recording=[1], error=gpu.out_of_memory)
    events: list[Event] = []
    backend = LocalBackend(LocalOptions(dtype="float32", batch_size=2))
    two = [ask(backend, model=sdxl, steps=8, seed=seed) for seed in (1, 2)]
    made = images(make(backend, *two, two[0], events=events))
    assert [image.info.engine for image in made] == ["eager", "eager", "cuda-graph"]
    assert notices(events) == []
    assert recorder.recorded == 1


def test_memory_of_recordings_is_given_back_to_a_decode_before_a_measure_is_taken(
    sdxl: Path, recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKL

    events: list[Event] = []
    backend = LocalBackend(OPTIONS)
    gpu.Failing(monkeypatch, AutoencoderKL, "_decode", at=[1])
    (made,) = images(make(backend, ask(backend, model=sdxl, steps=8), events=events))
    assert made.info.measures == ()
    assert (recorder.held, made.info.engine) == (0, "cuda-graph")
    assert notices(events) == ["CUDA graphs are left out, which is slower: the memory is needed."]


def test_offloaded_networks_are_not_recorded(sdxl: Path, recorder: FakeRecorder) -> None:
    backend = LocalBackend(LocalOptions(dtype="float32", memory="low"))
    (made,) = images(make(backend, ask(backend, model=sdxl, steps=8)))
    assert "model-offload" in made.info.measures
    assert (recorder.recorded, made.info.engine) == (0, "eager")


def test_a_plan_without_memory_for_graphs_is_made_without_them(
    sdxl: Path, recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    backend = LocalBackend(OPTIONS)
    request = ask(backend, model=sdxl, steps=8)
    with monkeypatch.context() as patched:
        # Of the size of the whole device, so that nothing but their absence fits.
        patched.setattr(cuda_graphs, "graph_memory", lambda _: 2**50)
        (without,) = images(make(backend, request, events=events))
        plan = backend.plan(request)
    assert (plan.cuda_graphs_mib, plan.measures) == (0, ())
    assert (without.info.engine, without.info.measures) == ("eager", ())
    assert (recorder.recorded, notices(events)) == (0, [])
    (made,) = images(make(backend, ask(backend, model=sdxl, steps=9)))
    assert made.info.engine == "cuda-graph"
    with monkeypatch.context() as patched:
        patched.setattr(cuda_graphs, "graph_memory", lambda _: 2**50)
        images(make(backend, ask(backend, model=sdxl, steps=10)))
    assert recorder.held == 0


# Of GraphedForward itself, with a small network.


class _Network:
    """A network with what UNets are called with: nested arguments, a time, constants."""

    def __new__(cls) -> LibraryObject:
        import torch

        class Network(torch.nn.Module):
            failures: ClassVar[list[Exception]] = []

            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(4, 4)
                self.scaling = {"adapter": 1.0}

            def forward(
                self,
                sample: LibraryObject,
                timestep: LibraryObject,
                added: dict[str, LibraryObject] | None = None,
                scale: float = 1.0,
                return_dict: bool = True,
            ) -> LibraryObject:
                if self.failures:
                    raise self.failures.pop()
                time = torch.as_tensor(timestep, device=sample.device).reshape(-1, 1).float()
                output = self.layer(sample) * scale * self.scaling["adapter"] + time
                if added:
                    output = output + added["text"]["embeds"]
                return {"sample": output} if return_dict else (output,)

        return Network()


class _Graphed:
    """A GraphedForward of a new network, and what it told."""

    def __init__(self) -> None:
        self.network: LibraryObject = _Network()
        self.recorder = FakeRecorder(lambda: self.network)
        self.told: list[str] = []
        self.graphs = GraphedForward(CUDA, self.recorder, self.told.append)
        self.graphs.begin_pass(self.network, self.network.forward)

    def check(self, *args: LibraryObject, **kwargs: LibraryObject) -> None:
        """The output is the network's own."""
        import torch

        with torch.no_grad():
            made = self.graphs(*args, **kwargs)
            expected = self.network.forward(*args, **kwargs)
        values = zip(
            *(list(o.values()) if isinstance(o, dict) else o for o in (made, expected)), strict=True
        )
        assert type(made) is type(expected)
        assert all(torch.equal(one, other) for one, other in values)


@pytest.mark.parametrize("kind", ["number", "integer", "cpu", "named", "batch"])
def test_times_of_every_kind_are_inputs_and_no_constants(kind: str) -> None:
    import torch

    graphed = _Graphed()
    for step in range(8):
        sample = torch.full((2, 4), float(step))
        time: LibraryObject = {
            "number": step / 3,
            "integer": step,
            "cpu": torch.tensor(step),
            "named": torch.tensor([step]),
            "batch": torch.tensor(float(step)).expand(2),
        }[kind]
        if kind == "named":
            graphed.check(sample, timestep=time, return_dict=False)
        else:
            graphed.check(sample, time)
    assert (graphed.recorder.recorded, graphed.told) == (1, [])
    assert graphed.graphs.replayed


def test_nested_arguments_and_constants_make_signatures() -> None:
    import torch

    graphed = _Graphed()
    for step in range(6):
        for scale in (1.0, 2.0):
            added = {"text": {"embeds": torch.full((2, 4), float(step))}}
            graphed.check(torch.ones(2, 4), torch.tensor(step), added, scale=scale)
    assert graphed.recorder.recorded == 2


def test_outputs_are_not_overwritten_by_the_next_replay() -> None:
    import torch

    graphed = _Graphed()
    inputs = [(torch.full((1, 4), float(n)), torch.tensor(n)) for n in range(6)]
    kept = [graphed.graphs(*each)["sample"] for each in inputs]
    before = [output.clone() for output in kept]
    graphed.graphs(torch.full((1, 4), 99.0), torch.tensor(99))
    assert all(torch.equal(one, other) for one, other in zip(kept, before, strict=True))
    assert len({output.data_ptr() for output in kept}) == len(kept)


def test_the_least_recently_used_recording_goes_first() -> None:
    import torch

    graphed = _Graphed()

    def use(rows: int, times: int) -> None:
        for step in range(times):
            graphed.check(torch.ones(rows, 4), torch.tensor(step))

    for rows in range(1, MAX_RECORDINGS + 1):
        use(rows, 3)
    use(1, 1)
    use(MAX_RECORDINGS + 1, 3)
    assert graphed.recorder.held == MAX_RECORDINGS
    recorded = graphed.recorder.recorded
    use(1, 2)
    assert graphed.recorder.recorded == recorded
    use(2, 2)
    assert graphed.recorder.recorded == recorded + 1


def test_constants_that_change_with_every_step_are_never_recorded() -> None:
    import torch

    graphed = _Graphed()
    for step in range(50):
        graphed.check(torch.ones(1, 4), torch.tensor(step), scale=step / 7)
    assert graphed.recorder.recorded == 0


def test_constants_that_return_too_often_end_it() -> None:
    import torch

    graphed = _Graphed()
    for step in range(50):
        for _ in range(2):
            graphed.check(torch.ones(1, 4), torch.tensor(step), scale=step / 7)
    assert graphed.graphs.dropped
    assert graphed.told == ["its arguments change from step to step"]
    assert (graphed.recorder.held, graphed.recorder.recorded) == (0, 2 * MAX_RECORDINGS)


def test_arguments_of_unknown_kinds_are_computed_eagerly() -> None:
    import torch

    graphed = _Graphed()
    scale = np.float32(0.5)  # no tensor, and no constant that t2i knows
    for step in range(4):
        graphed.check(torch.ones(1, 4), torch.tensor(step), {}, scale=scale)
    assert graphed.recorder.recorded == 0


def test_what_is_not_a_number_equals_itself() -> None:
    import torch

    graphed = _Graphed()
    for step in range(4):
        graphed.graphs(torch.full((1, 4), float("nan")), torch.tensor(step))
    assert graphed.told == []
    assert graphed.graphs.replayed


def test_an_error_of_the_network_itself_is_raised_as_it_is() -> None:
    import torch

    graphed = _Graphed()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        graphed.graphs(torch.ones(1, 5), torch.tensor(1))
    assert graphed.told == []


def test_failures_of_a_release_are_told_and_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tests.fakes.recorder import FakeRecording

    graphed = _Graphed()
    for step in range(4):
        graphed.check(torch.ones(1, 4), torch.tensor(step))
    gpu.Failing(monkeypatch, FakeRecording, "release", at=[1], error=lambda: RuntimeError("lost"))
    assert graphed.graphs.release()
    assert (graphed.graphs.dropped, graphed.told) == (True, ["lost"])
    graphed.check(torch.ones(1, 4), torch.tensor(7))


def test_memory_that_runs_out_in_a_call_is_first_that_of_recordings() -> None:
    import torch

    graphed = _Graphed()
    for step in range(4):
        graphed.check(torch.ones(1, 4), torch.tensor(step))
    graphed.network.failures.append(gpu.out_of_memory())
    output = graphed.graphs(torch.ones(2, 4), torch.tensor(1))["sample"]
    assert output.shape == (2, 4)
    assert (graphed.recorder.held, graphed.told) == (0, ["the memory is needed"])
    graphed.network.failures.append(gpu.out_of_memory())
    with pytest.raises(torch.OutOfMemoryError):
        graphed.graphs(torch.ones(2, 4), torch.tensor(1))


def _new_weight(network: LibraryObject) -> None:
    import torch

    network.layer.weight = torch.nn.Parameter(network.layer.weight.detach() * 1.5)


def _weight_in_place(network: LibraryObject) -> None:
    import torch

    with torch.no_grad():
        network.layer.weight.mul_(1.5)


def _moved_weight(network: LibraryObject) -> None:
    network.layer.weight.data = network.layer.weight.data.clone()


def _strided_weight(network: LibraryObject) -> None:
    network.layer.weight.data = network.layer.weight.data.t().contiguous().t().clone()


def _hook(network: LibraryObject) -> None:
    network.layer.register_forward_hook(lambda module, inputs, output: output * 0.5)


def _adapter_scale(network: LibraryObject) -> None:
    network.scaling["adapter"] *= 0.3  # as PEFT's layers have it


def _forward(network: LibraryObject) -> None:
    layer, forward = network.layer, network.layer.forward
    layer.forward = lambda inputs: forward(inputs) * 0.5


@pytest.mark.parametrize(
    "change",
    [
        *(_new_weight, _weight_in_place, _moved_weight, _strided_weight),
        *(_hook, _adapter_scale, _forward),
    ],
)
def test_what_a_recording_has_fixed_is_recorded_anew_when_it_changes(
    change: Callable[[LibraryObject], None],
) -> None:
    import torch

    graphed = _Graphed()
    for changed in range(2):
        for step in range(4):
            graphed.check(torch.ones(1, 4), torch.tensor(step))
        assert graphed.recorder.recorded == changed + 1
        change(graphed.network)
        graphed.graphs.begin_pass(graphed.network, graphed.network.forward)
    assert graphed.told == []
    # What has not changed is recorded once.
    graphed.graphs.begin_pass(graphed.network, graphed.network.forward)
    for step in range(3):
        graphed.graphs.begin_pass(graphed.network, graphed.network.forward)
        graphed.check(torch.ones(1, 4), torch.tensor(step))
        graphed.check(torch.ones(1, 4), torch.tensor(step))
    assert graphed.recorder.recorded == 3


def test_the_state_of_a_unet_changes_with_all_that_diffusers_changes() -> None:
    import torch
    from diffusers.models.attention_processor import AttnProcessor

    unet = tiny_models.families()["sdxl"]().unet
    changes: list[Callable[[], object]] = [
        lambda: unet.set_attention_slice(1),
        lambda: unet.set_attention_slice(2),
        lambda: unet.set_attn_processor(AttnProcessor()),
        lambda: unet.fuse_qkv_projections(),
        lambda: unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
        lambda: unet.enable_freeu(s1=0.8, s2=0.2, b1=1.2, b2=1.4),
        lambda: unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn),
        lambda: unet.to(torch.float16),
    ]
    states = [network_state(unet)]
    for change in changes:
        change()
        states.append(network_state(unet))
        assert states[-1] == network_state(unet)
    assert len(set(states)) == len(states)
