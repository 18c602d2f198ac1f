"""What is done while libraries are imported: local weights are read, the GPU is started."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest

from t2i_cli import postcard
from t2i_cli.backends.local import load_ahead, load_target
from t2i_cli.backends.local.device import CPU, Device
from t2i_cli.backends.local.load_ahead import LoadAhead
from t2i_cli.backends.local.load_target import LoadTarget
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.models import catalog

MOUNTS = """\
1 0 0:1 / / rw - ext4 /dev/vda rw
2 1 0:2 / /mnt/far rw shared:1 - nfs4 server:/x rw
3 1 0:3 / /mnt/far/near\\040by rw - xfs /dev/vdb rw
4 1 0:4 / /mnt/twice rw - ext4 /dev/vdc rw
5 1 0:5 / /mnt/twice rw - fuse.gcsfuse bucket rw
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="the page cache is read on Linux only")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The bytes that have been read ahead, by the names of their files."""
    found: dict[str, int] = {}
    real = os.sendfile

    def sendfile(out: int, given: int, offset: int, count: int) -> int:
        done = real(out, given, offset, count)
        name = Path(os.readlink(f"/proc/self/fd/{given}")).name
        found[name] = found.get(name, 0) + done
        return done

    monkeypatch.setattr(os, "sendfile", sendfile)
    return found


def target(device: Device = CPU) -> LoadTarget:
    """The embedded model, as a run would load it."""
    spec = catalog.MODELS["postcard"]
    return replace(load_target.resolve_target(spec, LocalOptions(device="cpu")), device=device)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/model", "ext4"),
        ("/mnt/far", "nfs4"),
        ("/mnt/far/model", "nfs4"),
        ("/mnt/farther/model", "ext4"),
        ("/mnt/far/near by/model", "xfs"),
        ("/mnt/twice/model", "fuse.gcsfuse"),
    ],
)
def test_the_file_system_of_a_file_is_the_innermost_mount(
    path: str, expected: str, tmp_path: Path
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert load_ahead.file_system(Path(path), mounts) == expected


@linux
def test_local_files_within_the_limit_are_read_whole(
    tmp_path: Path, sent: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_ahead, "_CHUNK", 1000)
    kinds = {"near": "ext4", "far": "nfs4"}
    monkeypatch.setattr(load_ahead, "file_system", lambda file: kinds[file.name])
    files = [tmp_path / name for name in kinds]
    for file in files:
        file.write_bytes(b"x" * 2500)
    load_ahead.read_files(files, 2499, Event())
    assert sent == {}
    load_ahead.read_files(files, 2500, Event())
    assert sent == {"near": 2500}
    ended = Event()
    ended.set()
    load_ahead.read_files(files, 2500, ended)
    assert sent == {"near": 2500}


@linux
def test_the_weights_of_a_load_are_read(
    sent: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_ahead, "file_system", lambda file: "ext4")
    expected = {file.name for file in postcard.FOLDER.rglob("*.safetensors")}
    ahead = LoadAhead.__new__(LoadAhead)
    ahead._target, ahead._ended = target(), Event()
    ahead._read_weights()
    assert sent.keys() == expected
    assert sum(sent.values()) == sum(
        file.stat().st_size for file in postcard.FOLDER.rglob("*.safetensors")
    )


def test_what_fails_ahead_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading does the same work, and tells what fails."""
    raised = []

    def fail(*_: object) -> None:
        raised.append(True)
        raise OSError("no such disk")

    monkeypatch.setattr(load_ahead, "read_files", fail)
    ahead = LoadAhead.__new__(LoadAhead)
    ahead._target, ahead._ended = target(), Event()
    ahead._read_weights()
    assert raised == [True]
    load_ahead.create_context(Device(name="cuda:99", kind="cuda", label="none"), "float16")


def test_only_a_gpu_is_started_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, str]] = []
    monkeypatch.setattr(
        load_ahead, "create_context", lambda chosen, dtype: started.append((chosen.name, dtype))
    )
    on_cpu = LoadAhead(target())
    on_cpu.start_device()
    on_cpu.end()
    assert started == []
    gpu = Device(name="cuda:1", kind="cuda", label="GPU")
    ahead = LoadAhead(replace(target(gpu), dtype="float16"))
    ahead.start_device()
    thread = ahead._device_thread
    assert isinstance(thread, Thread)
    ahead.end()
    assert not thread.is_alive()
    assert started == [("cuda:1", "float16")]


def test_a_context_is_one_small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, which computes the same without a context."""
    import torch

    asked = []
    real = torch.ones

    def ones(*size: object, **options: object) -> torch.Tensor:
        asked.append(options["device"])
        return real(8, 8)

    monkeypatch.setattr(torch, "ones", ones)
    load_ahead.create_context(CPU, "float32")
    assert asked == ["cpu"]
