"""Devices: which one is found, what memory it has, and the precision chosen for it."""

from pathlib import Path

import psutil
import pytest
import torch

from t2i_cli.backends.local import device
from t2i_cli.backends.local.device import Device, MemoryInfo
from t2i_cli.errors import InputError
from tests.fakes import gpu

CUDA = Device(name="cuda:0", kind="cuda", label="GPU")
MPS = Device(name="mps", kind="mps", label="Apple GPU")
CPU = Device(name="cpu", kind="cpu", label="CPU")


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two CUDA devices, one XPU, and MPS."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda index: "Arc")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.mark.usefixtures("everything")
def test_devices_come_in_order() -> None:
    assert [(d.name, d.kind) for d in device.list_devices()] == [
        ("cuda:0", "cuda"),
        ("cuda:1", "cuda"),
        ("xpu:0", "xpu"),
        ("mps", "mps"),
        ("cpu", "cpu"),
    ]


@pytest.mark.usefixtures("everything")
def test_rocm_is_told_from_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert device.find_device("rocm") == Device(name="cuda:0", kind="rocm", label="Card 0")


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize(
    ("asked", "found"),
    [(None, "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("xpu", "xpu:0"), ("cpu", "cpu")],
)
def test_a_device_is_found_by_name(asked: str | None, found: str) -> None:
    assert device.find_device(asked).name == found


def test_an_unknown_device_lists_what_is_there() -> None:
    with pytest.raises(
        InputError, match=r"no device 'cuda:7' here; there is cpu \(CPU\)"
    ) as caught:
        device.find_device("cuda:7")
    assert caught.value.field == "device"


def test_the_hosts_memory_is_what_the_system_says() -> None:
    here = device.device_memory(CPU)
    assert 0 < here.free <= here.total <= psutil.virtual_memory().total


def test_unused_memory_that_torch_holds_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 8000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 300)
    assert device.device_memory(CUDA) == MemoryInfo(free=1400, total=8000)


def test_mps_shares_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 2**60)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 0)
    assert device.device_memory(MPS).free <= psutil.virtual_memory().total


def test_a_control_groups_limit_counts(tmp_path: Path) -> None:
    group = tmp_path / "user" / "job"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("8000\n")
    (group.parent / "memory.current").write_text("5000\n")
    (group.parent / "memory.stat").write_text("anon 1\ninactive_file 1500\n")
    own = tmp_path / "own"
    own.write_text("0::/user/job\n")
    assert device._cgroup_limits(tmp_path, own) == [MemoryInfo(free=4500, total=8000)]


def test_a_limit_of_cgroup_v1_counts(tmp_path: Path) -> None:
    group = tmp_path / "memory" / "job"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("8000\n")
    (group / "memory.usage_in_bytes").write_text("9000\n")
    (group / "memory.stat").write_text("total_inactive_file 0\n")
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/job\n4:memory:/job\n")
    assert device._cgroup_limits(tmp_path, own) == [MemoryInfo(free=0, total=8000)]
    assert device._cgroup_limits(tmp_path, tmp_path / "none") == []


@pytest.mark.parametrize(
    ("place", "transformer", "dtype"),
    [
        (CPU, False, "float32"),
        (CPU, True, "float32"),
        (MPS, False, "float16"),
        (MPS, True, "bfloat16"),
        (CUDA, False, "float16"),
        (CUDA, True, "bfloat16"),
    ],
)
def test_the_dtype_fits_device_and_model(
    place: Device, transformer: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert device.choose_dtype(place, None, transformer=transformer) == dtype
    assert device.choose_dtype(place, "float32", transformer=transformer) == "float32"


def test_an_old_gpu_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert device.choose_dtype(CUDA, None, transformer=True) == "float16"


def test_an_unknown_dtype_lists_the_valid_ones() -> None:
    with pytest.raises(InputError, match="float16, bfloat16, float32"):
        device.choose_dtype(CPU, "int8", transformer=False)


def test_every_way_to_run_out_of_memory_is_known() -> None:
    assert device.is_out_of_memory(gpu.out_of_memory())
    assert device.is_out_of_memory(gpu.cpu_out_of_memory())
    assert device.is_out_of_memory(RuntimeError("MPS backend out of memory (allocated: 9 GB)"))
    assert device.is_out_of_memory(MemoryError())
    assert not device.is_out_of_memory(RuntimeError("shape mismatch"))
    assert not device.is_out_of_memory(ValueError("out of memory"))
