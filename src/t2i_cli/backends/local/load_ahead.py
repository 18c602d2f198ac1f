"""Do while libraries are imported what loading waits for: read the weights, start the GPU.

Both run on threads beside the imports, which take one core for seconds. They only prepare: loading
does its work as ever and tells what fails. So failures here are silent by design, and change
nothing.
"""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from t2i_cli.backends.local import device
from t2i_cli.backends.local.device import Device
from t2i_cli.models import sources

if TYPE_CHECKING:
    from t2i_cli.backends.local.load_target import LoadTarget

_LOCAL_FILE_SYSTEMS = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "xfs"}
"""File systems whose pages the kernel keeps; over a network a file might be fetched twice."""
_CHUNK = 2**26
"""Bytes that are read between two looks at whether loading has ended."""
_MOUNTS = Path("/proc/self/mountinfo")


class LoadAhead:
    """The preparation of one load: `start_device` after torch is imported, `end` after the load."""

    def __init__(self, target: "LoadTarget") -> None:
        """Start to read the weights of the target into the page cache."""
        self._target = target
        self._ended = Event()
        self._device_thread: Thread | None = None
        if sys.platform == "linux":
            Thread(target=self._read_weights, daemon=True).start()

    def start_device(self) -> None:
        """Start to create the context of a GPU, with its library of matrix products."""
        if self._target.device.own_memory:
            arguments = (self._target.device, self._target.dtype)
            self._device_thread = Thread(target=create_context, args=arguments, daemon=True)
            self._device_thread.start()

    def end(self) -> None:
        """Stop reading, and wait for the GPU: nothing else may use it while a graph is recorded."""
        self._ended.set()
        if self._device_thread is not None:
            self._device_thread.join()

    def _read_weights(self) -> None:
        target = self._target
        with suppress(Exception):  # see the module's docstring
            files = [
                file
                for part in sources.list_parts(target.folder)
                if part.name in target.sizes
                for file in part.weight_paths(target.dtype)
            ]
            read_files(files, device.host_memory().free // 2, self._ended)


def read_files(files: Iterable[Path], limit: int, ended: Event) -> None:
    """Read local files into the page cache, if together they have at most `limit` bytes.

    Raises OSError. sendfile() to the null device reads without copying, and without Python's lock.
    """
    local = [file for file in files if file_system(file) in _LOCAL_FILE_SYSTEMS]
    if sum(os.path.getsize(file) for file in local) > limit:
        return
    with open(os.devnull, "wb") as nowhere:
        for file in local:
            with open(file, "rb") as opened:
                offset = 0
                while not ended.is_set() and (
                    sent := os.sendfile(nowhere.fileno(), opened.fileno(), offset, _CHUNK)
                ):
                    offset += sent


def file_system(file: Path, mounts: Path = _MOUNTS) -> str:
    """The type of the file system that a file lies on, empty if unknown.

    The format is in https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html.
    """
    path, found, longest = os.path.realpath(file), "", -1
    for line in mounts.read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].encode().decode("unicode_escape")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        # A later mount on the same point hides an earlier one.
        if inside and len(point) >= longest:
            found, longest = after.split(" ")[0], len(point)
    return found


def create_context(chosen: Device, dtype: str) -> None:
    """Create the context of a GPU by one small matrix product."""
    with suppress(Exception):  # see the module's docstring
        import torch

        ones = torch.ones((8, 8), dtype=getattr(torch, dtype), device=chosen.name)
        (ones @ ones).sum().item()
