"""Quantised weights: what is refused and why, what a plan counts, and real pictures."""

import asyncio
import threading
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from t2i_cli import postcard
from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import (
    LocalBackend,
    LocalOptions,
    device,
    load_target,
    lossy_plan,
    memory,
    oom_fallback,
    planning,
    quantization,
)
from t2i_cli.backends.local.device import Device, MemoryInfo
from t2i_cli.errors import InputError, OutOfMemoryError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import weights
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.server.engine import Engine, NotServedError
from tests import tiny_models
from tests.conftest import T2I
from tests.fakes import gpu
from tests.fakes.stub_backend import StubBackend

CPU = Device(name="cpu", kind="cpu", label="CPU")
CUDA = Device(name="cuda:0", kind="cuda", label="GPU")
MPS = Device(name="mps", kind="mps", label="Apple GPU")
has_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The packages that are installed, by version; a test changes them."""
    found = {"torchao": "0.18.0", "bitsandbytes": "0.50.2"}

    def version(name: str) -> str:
        if name not in found:
            raise PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(quantization, "version", version)
    return found


def capability(monkeypatch: pytest.MonkeyPatch, major: int, minor: int) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, minor))


def refusal(name: str, place: Device, dtype: str | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        quantization.check_quantization(name, place, dtype)
    return caught.value


@pytest.mark.usefixtures("installed")
def test_a_device_that_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = refusal("nf4", CPU)
    assert (
        on_cpu.message == "--quantize nf4 needs a CUDA, ROCm or XPU device, and cpu (CPU) is none."
    )
    assert on_cpu.hint == "int8 or fp8-storage would do here."
    assert "Apple GPUs have none" in refusal("fp8-storage", MPS).message
    assert refusal("nf4", MPS).hint == "int8 would do here."
    for kind in ("cpu", "mps", "xpu", "rocm"):
        assert "computes in fp8" in refusal("fp8", replace(CPU, kind=kind)).message
    capability(monkeypatch, 8, 6)
    assert "cuda:0 (GPU) cannot" in refusal("fp8", CUDA).message
    capability(monkeypatch, 8, 9)
    quantization.check_quantization("fp8", CUDA)
    quantization.check_quantization("fp8", CUDA, "bfloat16")
    assert refusal("fp8", CUDA, "float16").field == "dtype"
    for name in ("int8", "fp8-storage", "nf4"):
        quantization.check_quantization(name, CUDA, "float16")
    for name in ("int8", "fp8-storage"):
        quantization.check_quantization(name, CPU)


def test_a_missing_package_is_named_with_the_extra(installed: dict[str, str]) -> None:
    installed["torchao"] = "0.14.9"
    del installed["bitsandbytes"]
    assert refusal("int8", CPU).message == (
        "--quantize int8 needs torchao 0.15 or newer, and 0.14.9 is installed."
    )
    missing = refusal("nf4", CUDA)
    assert missing.message == (
        "--quantize nf4 needs bitsandbytes 0.48 or newer, which is not installed."
    )
    assert "pip install 't2i-cli[gpu]'" in str(missing.hint)
    quantization.check_quantization("fp8-storage", CPU)
    assert [quantization.is_available(name, CUDA) for name in quantization.MEMORY_METHODS] == [
        *(False, True, False)
    ]


def test_the_extra_brings_what_is_asked_for() -> None:
    import tomllib

    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = dict(one.split(">=") for one in project["optional-dependencies"]["gpu"])
    for method in quantization._METHODS.values():
        if method.package:
            assert tuple(map(int, extra[method.package].split("."))) >= method.minimum


def tiny_index(folder: Path, **components: list[str]) -> Path:
    """A folder whose model_index.json names these components."""
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text("{}")
    tiny_models.edit_json(folder / "model_index.json", _class_name="FluxPipeline", **components)
    return folder


def test_denoisers_and_language_models_are_quantised(tmp_path: Path) -> None:
    folder = tiny_index(
        tmp_path,
        transformer=["diffusers", "FluxTransformer2DModel"],
        transformer_2=["diffusers", "FluxTransformer2DModel"],
        vae=["diffusers", "AutoencoderKL"],
        text_encoder=["transformers", "CLIPTextModel"],
        text_encoder_2=["transformers", "T5EncoderModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
        scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
    )
    assert quantization.quantized_components(folder) == {
        "transformer": "diffusers",
        "transformer_2": "diffusers",
        "text_encoder_2": "transformers",
    }


def test_quantised_bytes_are_counted_by_kind_of_weight(tmp_path: Path) -> None:
    folder = tiny_index(
        tmp_path,
        transformer=["diffusers", "FluxTransformer2DModel"],
        vae=["diffusers", "AutoencoderKL"],
    )
    floats = {"linear": 6400, "modulation": 640, "convolution": 100, "embedding": 10, "other": 50}
    rows = {"linear": 64, "modulation": 8, "convolution": 10, "embedding": 1, "other": 50}
    found = {
        name: weights.ComponentWeights(elements={"BF16": 7200}, floats=floats, rows=rows)  # type: ignore[arg-type]
        for name in ("transformer", "vae")
    }

    def sizes(kind: str | None, dtype: str = "bfloat16") -> dict[str, int]:
        return quantization.quantized_sizes(found, folder, dtype, None, kind)

    assert sizes(None) == {"transformer": 14400, "vae": 14400}
    assert sizes("fp8-storage") == {"transformer": 14400 - 6500, "vae": 14400}
    assert sizes("int8")["transformer"] == 14400 - 7040 + 72 * 5
    assert sizes("fp8")["transformer"] == 14400 - 7040 + 72 * 4
    assert sizes("nf4")["transformer"] == 14400 - int(7040 * 1.4375)
    assert sizes("int8", "float32")["transformer"] == 28800 - 7040 * 3 + 72 * 5
    assert quantization.shrunk_bytes(1000, "bfloat16", "nf4") == 281
    assert quantization.shrunk_bytes(1000, "bfloat16", None) == 1000


def ask(backend: LocalBackend, folder: Path = postcard.FOLDER, **fields: object) -> ResolvedRequest:
    settings = {"prompt": "a red star", "seed": 1, "steps": 4}
    request = GenerateRequest(model=str(folder), **settings | fields)  # type: ignore[arg-type]
    return resolve_request(request, backend.describe(request))


def run(backend: LocalBackend, *requests: ResolvedRequest) -> list[GeneratedImage]:
    outcomes = list(backend.run(requests, lambda _: None, threading.Event()))
    images = [outcome for outcome in outcomes if isinstance(outcome, GeneratedImage)]
    assert len(images) == len(requests), outcomes
    return images


def pixels(image: GeneratedImage) -> NDArray[np.float64]:
    return np.asarray(image.image, dtype=np.float64)


def psnr(one: GeneratedImage, other: GeneratedImage) -> float:
    error = np.mean((pixels(one) - pixels(other)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def weight_bytes(backend: LocalBackend) -> dict[str, int]:
    """The bytes that a loaded pipeline's networks really hold."""
    import torch

    assert backend._loaded
    return {
        name: sum(tensor.nbytes for tensor in _stored(network))
        for name, network in backend._loaded.pipe.components.items()
        if isinstance(network, torch.nn.Module)
    }


def _stored(
    network: LibraryObject,
) -> list[LibraryObject]:
    """A network's tensors; of a quantised one, those that it consists of."""
    found = []
    for tensor in network.parameters():
        if hasattr(tensor, "__tensor_flatten__"):
            names, _ = tensor.__tensor_flatten__()
            found += [getattr(tensor, name) for name in names]
        else:
            found.append(tensor)
    return found


@pytest.mark.parametrize("kind", [pytest.param("int8", marks=has_torchao), "fp8-storage"])
def test_rows_with_and_without_quantisation_in_one_run(kind: str) -> None:
    backend = LocalBackend(LocalOptions(device="cpu"))
    plain = ask(backend)
    quantized = ask(backend, quantize=kind)
    first, other, again = run(backend, plain, quantized, plain)
    assert np.array_equal(pixels(first), pixels(again))
    assert 25 < psnr(first, other) < 70
    assert other.request.to_json()["quantize"] == kind
    assert ("torchao" in other.info.libraries) == (kind == "int8")
    assert "torchao" not in first.info.libraries
    assert first.request.identity() != other.request.identity()
    [same] = run(backend, quantized)
    assert np.array_equal(pixels(same), pixels(other))
    held, planned = weight_bytes(backend), backend._target(quantized).sizes
    assert held["unet"] <= planned["unet"] <= 1.25 * held["unet"]
    assert planned["vae"] == backend._target(plain).sizes["vae"]
    assert planned["unet"] < 0.85 * backend._target(plain).sizes["unet"]


@pytest.mark.parametrize("kind", [pytest.param("int8", marks=has_torchao), "fp8-storage"])
def test_encoders_that_are_language_models_are_quantised_as_planned(
    kind: str, tmp_path: Path
) -> None:
    """T5 computes in the dtype of its `wo`; a pipeline takes its dtype from the embeddings."""
    import torch

    folder = tiny_models.save("flux", tmp_path / "flux")
    backend = LocalBackend(LocalOptions(device="cpu", dtype="bfloat16"))
    settings = {"width": 64, "height": 64, "steps": 2}
    [plain] = run(backend, ask(backend, folder, **settings))
    [made] = run(backend, request := ask(backend, folder, quantize=kind, **settings))
    assert psnr(plain, made) > 15  # random weights; noise is 8
    assert backend._loaded
    encoder = backend._loaded.pipe.text_encoder_2
    assert encoder.dtype == torch.bfloat16
    held, planned = weight_bytes(backend), backend._target(request).sizes
    for name in ("transformer", "text_encoder_2"):
        assert held[name] <= planned[name] <= 1.15 * held[name]
    assert held["text_encoder"] == planned["text_encoder"]


@pytest.mark.parametrize("kind", [pytest.param("int8", marks=has_torchao), "fp8-storage"])
@pytest.mark.parametrize("family", ["z-image", "pixart"])
def test_layers_that_keep_their_precision_are_planned_so(
    family: str, kind: str, tmp_path: Path
) -> None:
    """Small networks, of which scales of rows and the layers at the ends are a large part."""
    backend = LocalBackend(LocalOptions(device="cpu", dtype="bfloat16"))
    request = ask(backend, tiny_models.save(family, tmp_path / family), quantize=kind)
    backend.load(request, lambda _: None)
    held, planned = weight_bytes(backend), backend._target(request).sizes
    for name in ("transformer", "text_encoder"):
        assert held[name] <= planned[name] <= 1.15 * held[name]


@pytest.mark.parametrize(
    "measures", [(memory.MODEL_OFFLOAD,), (memory.VAE_TILING, memory.GROUP_OFFLOAD)]
)
def test_weights_in_fp8_are_offloaded(
    measures: memory.Measures, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.install(monkeypatch, free=2**34)
    monkeypatch.setattr(planning, "_measures", lambda *_: ())
    backend = LocalBackend(LocalOptions(dtype="float32"))
    request = ask(backend, quantize="fp8-storage")
    [plain] = run(backend, request)
    assert backend._loaded
    backend._loaded.place(measures, "test")
    [offloaded] = run(backend, request)
    assert offloaded.info.measures == measures
    assert np.array_equal(pixels(plain), pixels(offloaded))


@pytest.mark.usefixtures("installed")
def test_nf4_is_planned_without_group_offload(monkeypatch: pytest.MonkeyPatch) -> None:
    need = memory.MemoryEstimate(
        weights={"unet": 1600}, denoise=100, attention=0, decode=100, tile=100
    )
    target = load_target.LoadTarget(
        spec=LocalBackend(LocalOptions()).describe(GenerateRequest(prompt="-", model="postcard")),
        device=CUDA,
        dtype="float16",
        folder=postcard.FOLDER,
        sizes={},
    )
    chosen = planning._measures(target, need, 500, 10**6, LocalOptions())
    assert chosen == (memory.GROUP_OFFLOAD,)
    packed = replace(target, quantize="nf4")
    assert planning._measures(packed, need, 500, 10**6, LocalOptions()) is None

    class Loaded:
        device, measures, quantize = CUDA, (memory.MODEL_OFFLOAD,), "nf4"
        folder = postcard.FOLDER

        class pipe:  # noqa: N801 - an attribute
            vae, model_cpu_offload_seq = None, "unet"

    left = oom_fallback._fallback_measures(Loaded(), False)  # type: ignore[arg-type]
    assert memory.GROUP_OFFLOAD not in left


def short_of_memory(monkeypatch: pytest.MonkeyPatch, *, total: int) -> None:
    """A CPU with `total` bytes, of which all are free."""
    info = MemoryInfo(free=total, total=total)
    monkeypatch.setattr(device, "list_devices", lambda: [CPU])
    monkeypatch.setattr(device, "host_memory", lambda: info)


def needed(backend: LocalBackend, kind: str | None) -> int:
    """The least bytes that a plan needs with the quantisation."""
    request = ask(backend, quantize=kind)
    target = backend._target(request)
    estimate = planning._estimate(target, 128, 128, target.dtype)
    return estimate.peak((memory.VAE_TILING,), 1, CPU)


@pytest.mark.usefixtures("installed")
def test_low_takes_the_mildest_that_fits_and_auto_takes_none(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]
) -> None:
    auto, low = (LocalBackend(LocalOptions(device="cpu", memory=m)) for m in ("auto", "low"))
    between = (needed(auto, None) + needed(auto, "int8")) // 2
    assert ask(low).quantize is None
    short_of_memory(monkeypatch, total=int(between / 0.95))
    assert ask(auto).quantize is None
    with pytest.raises(OutOfMemoryError) as caught:
        auto.check(ask(auto))
    assert caught.value.hint == "It would fit with --quantize int8."
    settled = ask(low)
    assert settled.quantize == "int8"
    assert "quantize" not in settled.user_set
    assert settled.identity() == ask(low, quantize="int8").identity() != ask(auto).identity()
    low.check(settled)
    assert ask(low, quantize="fp8-storage").quantize == "fp8-storage"
    installed.clear()
    assert ask(low).quantize == "fp8-storage"
    # Other programs leave less: the same request keeps its id, and is refused.
    used = MemoryInfo(free=1000, total=int(between / 0.95))
    monkeypatch.setattr(device, "host_memory", lambda: used)
    assert ask(low).quantize == "fp8-storage"
    with pytest.raises(OutOfMemoryError):
        low.check(ask(low))
    short_of_memory(monkeypatch, total=1000)
    assert (
        lossy_plan.settle_quantization(ask_spec(low), LocalOptions(memory="low")).quantize is None
    )


def ask_spec(backend: LocalBackend) -> ModelSpec:
    return backend.describe(GenerateRequest(prompt="-", model="postcard"))


def test_the_command_refuses_before_it_loads(t2i: T2I) -> None:
    done = t2i("generate", "a red star", "-m", "postcard", "--quantize", "nf4", "--device", "cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --quantize nf4 needs a CUDA, ROCm or XPU device")
    assert "loading" not in done.stderr
    wrong = t2i("generate", "a red star", "--quantize", "int9")
    assert wrong.returncode == 2
    assert "quantize cannot be 'int9'; did you mean int8?" in wrong.stderr


def test_a_server_serves_the_quantisation_that_it_was_started_with() -> None:
    async def serve() -> None:
        for loaded in ("int8", None):
            engine = Engine(StubBackend(), "postcard", quantize=loaded)
            await engine.start()
            [unset] = await engine.resolve_requests([GenerateRequest(prompt="a")])
            assert unset.quantize == loaded
            with pytest.raises(NotServedError) as caught:
                await engine.resolve_requests([GenerateRequest(prompt="a", quantize="nf4")])
            assert caught.value.field == "quantize"
            [same] = await engine.resolve_requests([GenerateRequest(prompt="a", quantize=loaded)])
            assert same.quantize == loaded
            await engine.stop(grace=1)
        # A worker loads what a request asks for.
        worker = Engine(StubBackend(), "postcard", load=False)
        await worker.start()
        [asked] = await worker.resolve_requests([GenerateRequest(prompt="a", quantize="nf4")])
        assert asked.quantize == "nf4"
        await worker.stop(grace=1)

    asyncio.run(asyncio.wait_for(serve(), 30))
