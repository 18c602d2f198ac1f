"""A GPU that is asked for and absent: why, and what to do; one that is there and not used."""

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from t2i_cli import diagnostics, postcard
from t2i_cli.backends.local import LocalBackend, LocalOptions, absent_gpu, device, loading
from t2i_cli.backends.local.device import Device
from t2i_cli.cli.commands import models
from t2i_cli.errors import InputError
from t2i_cli.events import Event, Notice
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.settings import store
from t2i_cli.vertex.torchserve import handler
from tests.conftest import T2I
from tests.test_local_backend import ask

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver by downloading and installing a new version from the URL: http://www.nvidia.com/"
)
NONE_SEEN = "No CUDA GPUs are available"
CUDA_1 = Device(name="cuda:1", kind="cuda", label="Card 1")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Linux machine with torch for CPUs, whose files are in a folder, and no GPU chosen."""
    for build in ("cuda", "hip", "xpu"):
        monkeypatch.setattr(torch.version, build, None)
    for library in (torch.cuda, torch.xpu):
        monkeypatch.setattr(library, "device_count", lambda: 0)
    for name in list(os.environ):
        if name.endswith("_VISIBLE_DEVICES") or name in {"ZE_AFFINITY_MASK", "T2I_DEVICE"}:
            monkeypatch.delenv(name)
    monkeypatch.delenv(absent_gpu.ACCELERATOR_VARIABLE, raising=False)
    monkeypatch.delenv(absent_gpu.MACHINE_VARIABLE, raising=False)
    monkeypatch.setattr(absent_gpu, "_ROOT", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


def card(root: Path, file: str = "dev/nvidia0") -> None:
    """The files of a card's driver."""
    (root / file).parent.mkdir(parents=True)
    (root / file).touch()


def raising(message: str, kind: type[Exception] = RuntimeError) -> Callable[..., None]:
    def raises(device: object = None) -> None:
        raise kind(message)

    return raises


def cuda_build(monkeypatch: pytest.MonkeyPatch, fails: str, *, counted: int = 0) -> None:
    """A build of torch for CUDA whose driver does not start; NVML counts the cards all the same."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", raising(fails))
    monkeypatch.setattr(torch.cuda, "get_device_name", raising(fails))

    def device_count() -> int:
        # As torch's own does where the driver is too old.
        warnings.warn(f"CUDA initialization: {fails}", UserWarning, stacklevel=2)
        return counted

    monkeypatch.setattr(torch.cuda, "device_count", device_count)


def cards(monkeypatch: pytest.MonkeyPatch, *names: str, counted: int | None = None) -> None:
    """Cards that work; before the driver has started, NVML counts `counted` of them."""
    started: list[int] = []

    def get_device_name(device: int) -> str:
        started.append(device)
        if device >= len(names):
            raise AssertionError("Invalid device id")
        return names[device]

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", get_device_name)
    monkeypatch.setattr(
        torch.cuda,
        "device_count",
        lambda: len(names) if started or counted is None else counted,
    )


def refused(name: str | None) -> str:
    """The error's sentence and hint."""
    with pytest.raises(InputError) as caught:
        device.find_device(name)
    assert caught.value.field == "device"
    assert caught.value.message.count(". ") <= 1 and caught.value.message.endswith(".")
    return f"{caught.value.message} {caught.value.hint}"


def test_a_build_of_torch_for_cpus_is_named(machine: Path) -> None:
    said = refused("cuda")
    assert f"this build of torch ({torch.__version__}) is not for CUDA" in said
    assert "Install torch for CUDA, on a machine that has an NVIDIA GPU: https://" in said
    card(machine)
    assert "Install torch for CUDA: https://" in refused("cuda:1")


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles", "none"])
def test_a_variable_that_hides_every_gpu_is_named(
    value: str, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(machine)
    cuda_build(monkeypatch, NONE_SEEN)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert f"CUDA_VISIBLE_DEVICES is {value!r}, which hides every GPU" in refused("cuda")
    # Who hides them wants the CPU.
    assert device.find_device(None).kind == "cpu"
    assert absent_gpu.find_unused_gpu() is None


@pytest.mark.parametrize("value", ["7", "0,0", "GPU-5fd4", "MIG-5fd4-aa", " 3 "])
def test_a_gpu_that_a_variable_names_in_vain_is_an_error(
    value: str, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(machine)
    cuda_build(monkeypatch, NONE_SEEN)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    for name in (None, "cuda"):
        said = refused(name)
        assert f"CUDA_VISIBLE_DEVICES is {value!r}" in said
        assert f"torch finds no such GPU: {NONE_SEEN}" in said
        assert "nvidia-smi -L" in said
    assert device.find_device("cpu").kind == "cpu"


def test_a_gpu_that_a_variable_names_is_asked_of_a_build_for_cpus_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "CUDA_VISIBLE_DEVICES is '0', and torch can use no GPU here" in refused(None)


def test_a_driver_that_is_too_old_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card(machine)
    # NVML counts the card; only its name, and every use, says what is wrong.
    cuda_build(monkeypatch, TOO_OLD, counted=1)
    said = refused("cuda")
    assert "its driver is too old" in said
    assert "found version 11040" in said
    assert "Update the NVIDIA driver" in said
    # Not asked for: the CPU computes, and it is said.
    assert device.find_device(None).kind == "cpu"
    absence = absent_gpu.find_unused_gpu()
    assert absence and "too old" in absence.sentence


def test_a_driver_that_does_not_start_is_told(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(machine, "proc/driver/nvidia/gpus/0000:01:00.0")
    cuda_build(monkeypatch, "CUDA unknown error - this may be due to an incorrectly set up env")
    assert "its driver does not start: CUDA unknown error" in refused("cuda:0")


def test_a_machine_without_a_card_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_build(monkeypatch, NONE_SEEN)
    said = refused("cuda")
    assert "no NVIDIA GPU is to be seen" in said
    assert "--gpus all" in said
    assert device.find_device(None).kind == "cpu"
    assert absent_gpu.find_unused_gpu() is None


def test_an_index_past_the_last_is_counted_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, "Card 0", "Card 1")
    assert device.find_device("cuda:1") == CUDA_1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    said = refused("cuda:4")
    assert "there is cuda:0 (Card 0), cuda:1 (Card 1), cpu (CPU)." in said
    assert "CUDA_VISIBLE_DEVICES is '4,5': torch counts the devices that it sees from 0." in said


def test_a_slice_of_a_card_is_what_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under MIG, NVML counts all cards, and a process sees a single slice."""
    slice = "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
    cards(monkeypatch, slice, counted=8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * 2**30, 5 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    found, cpu = device.list_devices()
    assert (found.name, found.label, cpu.name) == ("cuda:0", slice, "cpu")
    assert device.device_memory(found).total == 5 * 2**30


@pytest.mark.parametrize(
    ("variable", "kind", "build"),
    [("HIP_VISIBLE_DEVICES", "rocm", "ROCm"), ("ZE_AFFINITY_MASK", "xpu", "XPUs")],
)
def test_other_makers_have_variables_of_their_own(
    variable: str, kind: str, build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"is not for {build}" in refused(kind)
    monkeypatch.setenv(variable, "0")
    said = refused(None)
    assert f"{variable} is '0'" in said
    assert f"is not for {build}" in said
    monkeypatch.setenv(variable, "-1")
    assert device.find_device(None).kind == "cpu"


def test_rocm_is_hidden_by_its_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "-1")
    assert "HIP_VISIBLE_DEVICES is '-1', which hides every GPU" in refused("rocm")
    monkeypatch.delenv("HIP_VISIBLE_DEVICES")
    assert "no AMD GPU is to be seen" in refused("rocm")
    monkeypatch.setattr(
        torch.cuda, "device_count", raising("HIP_VISIBLE_DEVICES contains more devices")
    )
    assert device.find_device(None).kind == "cpu"


def test_the_second_card_of_rocm_has_that_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, "Card 0", "Card 1")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert device.find_device("rocm:1").name == device.find_device("cuda:1").name == "cuda:1"
    monkeypatch.setenv("T2I_DEVICE", "rocm:1")
    assert store.get_setting("device") == "rocm:1"


def test_a_download_needs_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    refused(None)
    assert models._computed_dtype(postcard.FOLDER) == "float32"


def test_mps_is_apples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MPS is for Apple's GPUs" in refused("mps")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "is not for MPS" in refused("mps")


def test_a_word_that_is_no_device_is_only_listed() -> None:
    assert refused("gpu") == "There is no device 'gpu' here; there is cpu (CPU). Did you mean cpu?"


def test_vertex_says_that_there_is_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_ACCELERATOR_TYPE", "NVIDIA_L4")
    assert "AIP_ACCELERATOR_TYPE is 'NVIDIA_L4', and torch can use no GPU here" in refused(None)
    with pytest.raises(RuntimeError, match="AIP_ACCELERATOR_TYPE is 'NVIDIA_L4'"):
        handler.check_accelerator(usable=False)
    handler.check_accelerator(usable=True)
    monkeypatch.setenv("AIP_ACCELERATOR_TYPE", "")
    assert device.find_device(None).kind == "cpu"
    handler.check_accelerator(usable=False)


@pytest.mark.parametrize(
    ("machine_type", "has_gpu"),
    [
        ("g2-standard-4", True),
        ("g4-standard-48", True),
        ("a2-ultragpu-1g", True),
        ("a3-highgpu-8g", True),
        ("a4x-highgpu-4g", True),
        ("n1-standard-4", False),
        ("c3-standard-8", False),
        ("ct5lp-hightpu-1t", False),
        ("", False),
    ],
)
def test_some_machines_have_a_gpu_without_a_word_of_it(
    machine_type: str, has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIP_MACHINE_TYPE", machine_type)
    if has_gpu:
        assert f"AIP_MACHINE_TYPE is {machine_type!r}, and torch can use no GPU" in refused(None)
        with pytest.raises(RuntimeError, match=f"AIP_MACHINE_TYPE is '{machine_type}'"):
            handler.check_accelerator(usable=False)
        handler.check_accelerator(usable=True)
    else:
        assert device.find_device(None).kind == "cpu"
        handler.check_accelerator(usable=False)
    assert device.find_device("cpu").kind == "cpu"


def test_torchserve_is_told_that_it_was_deployed_with_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("T2I_DEVICE", "cuda")
    with pytest.raises(RuntimeError, match="T2I_DEVICE is 'cuda'"):
        handler.check_accelerator(usable=False)
    monkeypatch.setenv("T2I_DEVICE", "cpu")
    handler.check_accelerator(usable=False)


@pytest.mark.parametrize(("asked", "notes"), [(None, 1), ("cpu", 0)])
def test_a_card_that_is_not_used_is_told(asked: str | None, notes: int, machine: Path) -> None:
    card(machine)
    told: list[Event] = []
    backend = LocalBackend(LocalOptions(device=asked))
    backend.load(ask(backend), told.append)
    found = [event.message for event in told if isinstance(event, Notice)]
    assert len(found) == notes
    assert all("There is an NVIDIA GPU that torch cannot use, since" in note for note in found)


def test_doctor_tells_of_it_as_well(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[tuple[str, str]]:
        told = [(each.name, each.status, each.detail) for each in diagnostics._devices()]
        return [(status, detail) for name, status, detail in told if name == "device"]

    assert [status for status, _ in found()] == ["ok"]
    card(machine, "usr/lib/wsl/lib/libcuda.so.1")
    (note, said), (good, _) = found()
    assert (note, good) == ("note", "ok")
    assert f"since this build of torch ({torch.__version__}) is not for CUDA" in said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [status for status, _ in found()] == ["note", "problem", "ok"]
    monkeypatch.setenv("T2I_DEVICE", "cpu")
    assert [status for status, _ in found()] == ["note", "ok"]


class CurrentDevice:
    """torch's current device: what acts on it by default is written down with its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
        self.current: object = f"{library}:0"
        self.acts: list[tuple[str, object]] = []
        outer = self

        class context:
            def __init__(self, device: object) -> None:
                self.device = device

            def __enter__(self) -> None:
                self.before, outer.current = outer.current, self.device

            def __exit__(self, *_: object) -> None:
                outer.current = self.before

        module = getattr(torch, library)
        monkeypatch.setattr(module, "device", context)
        monkeypatch.setattr(module, "set_device", lambda device: setattr(self, "current", device))
        monkeypatch.setattr(
            module, "empty_cache", lambda: self.acts.append(("empty_cache", self.current))
        )


@pytest.mark.parametrize(
    "place",
    [
        CUDA_1,
        Device(name="cuda:1", kind="rocm", label="Card 1"),
        Device(name="xpu:1", kind="xpu", label="Arc"),
    ],
)
def test_another_card_than_the_first_is_left_alone(
    place: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = CurrentDevice(monkeypatch, place.name.partition(":")[0])
    device.clear_cache(place)
    assert current.acts == [("empty_cache", place.name)]
    assert current.current != place.name
    device.select_device(place)
    assert current.current == place.name


def test_a_run_makes_its_device_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the model is read: diffusers' streams are made on the current device."""
    order: list[object] = []
    monkeypatch.setattr(device, "select_device", order.append)
    load_pipeline = loading.load_pipeline

    def loaded(*given: LibraryObject, **named: LibraryObject) -> LibraryObject:
        order.append("load")
        return load_pipeline(*given, **named)

    monkeypatch.setattr(loading, "load_pipeline", loaded)
    backend = LocalBackend(LocalOptions())
    backend.load(ask(backend), lambda event: None)
    assert order == [Device(name="cpu", kind="cpu", label="CPU"), "load"]


def test_a_command_says_it_in_one_sentence(t2i: T2I) -> None:
    done = t2i("generate", "a star", "-m", "postcard", "--device", "cuda:1", "--json")
    assert done.returncode == 2
    error = json.loads(done.stderr)["error"]
    assert "There is no device 'cuda:1' here; there is cpu (CPU), since" in error["message"]
    assert error["hint"]
