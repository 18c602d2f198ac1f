"""Models whose weights were quantised when they were saved: real formats, loaded or refused."""

import json
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from t2i_cli import postcard
from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions, load_target, saved_weights
from t2i_cli.backends.local.device import Device
from t2i_cli.errors import InputError, ModelError, T2IError
from t2i_cli.models import saved_quantization
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.request_adapters import Adapter
from tests import tiny_models
from tests.conftest import T2I

SNOW = Path(__file__).parent / "adapters/snow.safetensors"
CPU = Device(name="cpu", kind="cpu", label="CPU")


def needs(package: str) -> pytest.MarkDecorator:
    missing = find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


def requantized(folder: Path, config: LibraryObject, dtype: str = "float32") -> Path:
    """Postcard with the UNet that diffusers quantises and saves."""
    import diffusers
    import torch

    tiny_models.copy_postcard(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet = diffusers.UNet2DConditionModel.from_pretrained(
            folder / "unet", quantization_config=config, torch_dtype=getattr(torch, dtype)
        )
        for file in (folder / "unet").glob("*.safetensors"):
            file.unlink()
        unet.save_pretrained(folder / "unet")
    return folder


def torchao_config(name: str) -> LibraryObject:
    import diffusers
    from torchao import quantization

    return diffusers.TorchAoConfig(getattr(quantization, name)())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Folders by the kind of their weights, each made once."""
    import diffusers

    root, made = tmp_path_factory.mktemp("saved"), {}
    makers: dict[str, Callable[[], tuple[LibraryObject, str]]] = {
        "int8": lambda: (torchao_config("Int8WeightOnlyConfig"), "bfloat16"),
        "fp8": lambda: (torchao_config("Float8WeightOnlyConfig"), "bfloat16"),
        "quanto": lambda: (diffusers.QuantoConfig(weights_dtype="int8"), "float32"),
    }

    def folder(kind: str) -> Path:
        if kind not in made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # diffusers will drop quanto one day
                config = makers[kind]()
            made[kind] = requantized(root / kind, *config)
        return made[kind]

    yield folder


def ask(backend: LocalBackend, model: Path, **fields: object) -> ResolvedRequest:
    values = {"prompt": "a house on green hills", "seed": 1, "steps": 3} | fields
    request = GenerateRequest(model=str(model), **values)  # type: ignore[arg-type]
    return resolve_request(request, backend.describe(request))


def made(backend: LocalBackend, request: ResolvedRequest) -> GeneratedImage:
    [outcome] = backend.run([request], lambda _: None, threading.Event())
    if not isinstance(outcome, GeneratedImage):
        raise outcome.error
    return outcome


def pixels(image: GeneratedImage) -> NDArray[np.float64]:
    return np.asarray(image.image, dtype=np.float64)


def psnr(one: GeneratedImage, other: GeneratedImage) -> float:
    error = float(np.mean((pixels(one) - pixels(other)) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


KINDS = [
    pytest.param("int8", "torchao", None, marks=needs("torchao")),
    pytest.param("fp8", "torchao", "bfloat16", marks=needs("torchao")),
    pytest.param(
        "quanto",
        "optimum-quanto",
        None,
        marks=needs("optimum.quanto" if find_spec("optimum") else "optimum"),
    ),
]


@pytest.mark.parametrize(("kind", "package", "dtype"), KINDS)
def test_saved_weights_make_the_picture_with_and_without_a_lora(
    kind: str, package: str, dtype: str | None, saved: Callable[[str], Path]
) -> None:
    backend = LocalBackend(LocalOptions(device="cpu"))
    lora = (Adapter(kind="lora", source=str(SNOW), weight=1.0),)
    plain = LocalBackend(LocalOptions(device="cpu", dtype=dtype))
    request = ask(backend, saved(kind))
    first, snowy = made(backend, request), made(backend, ask(backend, saved(kind), loras=lora))
    again = made(backend, request)
    assert package in first.info.libraries
    assert first.info.dtype == dtype or dtype is None
    assert psnr(first, made(plain, ask(plain, postcard.FOLDER))) > 30
    assert psnr(snowy, made(plain, ask(plain, postcard.FOLDER, loras=lora))) > 30
    assert psnr(first, snowy) < 20
    assert np.array_equal(pixels(first), pixels(again))
    sizes = [
        each._target(ask(each, model)).sizes["unet"]
        for each, model in ((backend, saved(kind)), (plain, postcard.FOLDER))
    ]
    assert sizes[0] < 0.9 * sizes[1]


@needs("torchao")
def test_what_else_is_asked_for_goes_with_saved_weights_or_is_refused(
    saved: Callable[[str], Path],
) -> None:
    other = LocalBackend(LocalOptions(device="cpu", dtype="float32"))
    with pytest.raises(InputError, match="saved quantised for bfloat16, and is not computed in f"):
        other.check(ask(other, saved("fp8")))
    backend = LocalBackend(LocalOptions(device="cpu"))
    with pytest.raises(InputError, match="quantised already") as caught:
        backend.check(ask(backend, saved("fp8"), quantize="fp8-storage"))
    assert caught.value.field == "quantize"
    # --memory low, and the hint of a refusal for memory, quantise nothing that is so already.
    target = backend._target(ask(backend, saved("fp8")))
    assert load_target.quantized_target(target, "fp8-storage", LocalOptions()) is None
    assert not saved_weights.lacks_group_offload(saved("fp8"), None)


@pytest.mark.skipif(find_spec("optimum") is None, reason="optimum-quanto is not installed")
def test_a_layer_with_which_pytorch_crashes_is_refused_in_bfloat16(
    saved: Callable[[str], Path],
) -> None:
    folder = saved("quanto")
    assert saved_weights.lacks_group_offload(folder, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_weights, "_KERNEL_WIDTH", 7)
        with pytest.raises(InputError, match="PyTorch cannot compute on a CPU in bfloat16"):
            saved_weights.settle_dtype(folder, "it", "bfloat16", CPU, "bfloat16")
        assert saved_weights.settle_dtype(folder, "it", None, CPU, "float32") == "float32"


def edited(folder: Path, config: object, part: str = "unet") -> Path:
    tiny_models.copy_postcard(folder)
    tiny_models.edit_json(folder / part / "config.json", quantization_config=config)
    return folder


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (NF4, ("bitsandbytes", "nf4")),
        ({"load_in_8bit": True}, ("bitsandbytes", "8bit")),
        ({"quant_method": "bitsandbytes_4bit"}, ("bitsandbytes", "fp4")),
        ({"quant_method": "torchao", "quant_type": "int8wo"}, ("torchao", None)),
        (
            {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}},
            },
            ("torchao", "Int8WeightOnlyConfig"),
        ),
        ({"quant_method": "quanto", "weights_dtype": "int8"}, ("quanto", "int8")),
        ({"quant_method": "quanto", "weights": "int4"}, ("quanto", "int4")),
        ({"quant_method": "torchao", "quant_type": {"default": [1]}}, ("torchao", None)),
        (None, None),
    ],
)
def test_the_forms_that_versions_have_written_are_read(
    config: object, said: object, tmp_path: Path
) -> None:
    folder = edited(tmp_path / "model", config)
    assert saved_quantization.quantized_parts(folder).get("unet") == said


def refusal(folder: Path) -> T2IError:
    with pytest.raises(ModelError) as caught:
        saved_quantization.check_methods(folder)
    return caught.value


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("config", [3, [], "bitsandbytes"])
def test_a_config_that_is_no_object_is_damaged(config: object, part: str, tmp_path: Path) -> None:
    told = refusal(edited(tmp_path / "model", config, part))
    assert told.message.startswith(f"The config of the {part} in {tmp_path / 'model'} is damaged: ")


def test_what_no_library_reads_is_told_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = refusal(edited(tmp_path / "a", {"quant_method": "no-such"}))
    assert "in a way that diffusers" in unknown.message
    assert "(no-such)" in unknown.message
    early = refusal(edited(tmp_path / "b", {"quant_method": "torchao", "quant_type": "int8wo"}))
    assert "by an early version of torchao" in early.message
    own = tiny_models.copy_postcard(tmp_path / "c")
    (own / "unet/quanto_qmap.json").write_text(json.dumps({}))
    assert "saved by optimum-quanto itself" in refusal(own).message
    saved_quantization.check_methods(edited(tmp_path / "d", NF4))
    monkeypatch.setattr(saved_quantization, "version", lambda _: "0.45.1")
    old = refusal(tmp_path / "d")
    assert "needs bitsandbytes 0.48 or newer, and 0.45.1 is installed" in old.message
    encoder = edited(tmp_path / "e", {"quant_method": "gptq"}, "text_encoder")
    saved_quantization.check_methods(encoder)  # which transformers loads, and diffusers does not


def test_a_device_that_cannot_hold_saved_weights_is_told(tmp_path: Path) -> None:
    folder = edited(tmp_path / "model", NF4)
    with pytest.raises(ModelError) as caught:
        saved_weights.check_saved_weights(folder, "it", CPU)
    assert caught.value.message == (
        "The unet of it is saved quantised (bitsandbytes nf4), which loads on a CUDA, ROCm or XPU "
        "device only, and cpu is none."
    )
    cuda = Device(name="cuda:0", kind="cuda", label="GPU")
    saved_weights.check_saved_weights(folder, "it", cuda)
    # transformers has kernels for CPUs.
    encoder = edited(tmp_path / "encoder", NF4, "text_encoder")
    saved_weights.check_saved_weights(encoder, "it", CPU)


@pytest.mark.parametrize("options", [{"load_in_8bit": True}, {"load_in_4bit": True}])
@needs("bitsandbytes")
def test_a_text_encoder_of_bitsandbytes_runs_on_a_cpu(
    options: dict[str, bool], tmp_path: Path
) -> None:
    import torch
    import transformers

    folder = tiny_models.copy_postcard(tmp_path / "model")
    config = transformers.BitsAndBytesConfig(**options)
    encoder = transformers.CLIPTextModel.from_pretrained(
        folder / "text_encoder", quantization_config=config, dtype=torch.bfloat16
    )
    for file in (folder / "text_encoder").glob("*.safetensors"):
        file.unlink()
    encoder.save_pretrained(folder / "text_encoder")
    backend = LocalBackend(LocalOptions(device="cpu"))
    image = made(backend, ask(backend, folder))
    assert backend._loaded
    assert backend._loaded.pipe.text_encoder.dtype == torch.float32
    assert psnr(image, made(backend, ask(backend, postcard.FOLDER))) > 15


@needs("torchao")
def test_a_saved_model_is_planned_made_and_recorded_by_the_command(
    t2i: T2I, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    common = ("-m", str(saved("fp8")), "--device", "cpu", "--seed", "1", "--steps", "1")
    done = t2i("generate", "a house", *common, "-o", str(tmp_path / "a.png"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dtype"] == "bfloat16"


@pytest.mark.parametrize("kind", [pytest.param("int8", marks=needs("torchao")), "fp8-storage"])
def test_a_lora_acts_on_weights_quantised_while_loaded_and_goes_again(kind: str) -> None:
    backend = LocalBackend(LocalOptions(device="cpu"))
    lora = (Adapter(kind="lora", source=str(SNOW), weight=1.0),)
    plain = ask(backend, postcard.FOLDER, quantize=kind)
    snowy = ask(backend, postcard.FOLDER, quantize=kind, loras=lora)
    images = [made(backend, each) for each in (plain, snowy, plain, snowy)]
    full = made(backend, ask(backend, postcard.FOLDER, loras=lora))
    assert psnr(images[1], full) > 30
    assert psnr(images[0], images[1]) < 20
    for first, again in (images[::2], images[1::2]):
        assert np.array_equal(pixels(first), pixels(again))
