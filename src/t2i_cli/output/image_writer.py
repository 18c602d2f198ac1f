"""Finished images become files: whole or not at all, and never over another one unasked."""

import errno
import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from t2i_cli.backend import GeneratedImage
from t2i_cli.errors import InputError, StorageError, T2IError, os_reason
from t2i_cli.files import atomic
from t2i_cli.image_formats import ImageFormat
from t2i_cli.output import metadata
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest
from t2i_cli.terminal.console import stdout_bytes

_USERS_FAULT = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
}
"""What a wrongly chosen place says; everything else is the storage's own failure."""


@dataclass(frozen=True, kw_only=True)
class SavedImage:
    """One image as it lies in its file (`path` is `None` for standard output).

    `width` and `height` are pixels; `seconds` is the time the image took to generate, and
    `round_trip` the seconds of the call to a server, if one made it.
    """

    index: int
    path: Path | None
    format: ImageFormat
    width: int
    height: int
    size_bytes: int
    sha256: str
    seconds: float
    request: ResolvedRequest
    lock: GenerationInfo
    round_trip: float | None = None

    def to_json(self) -> dict[str, object]:
        """The flat object that `--json` prints: what came out, what was asked, how it ran."""
        lock = {name: value for name, value in asdict(self.lock).items() if value is not None}
        return {
            "path": None if self.path is None else str(self.path),
            "format": self.format,
            "bytes": self.size_bytes,
            "sha256": self.sha256,
            "seconds": round(self.seconds, 3),
            **self.timing_record(),
            **self.request.to_json(),
            "width": self.width,
            "height": self.height,
            **lock,
            "scheduler": self.request.scheduler or self.lock.scheduler,
        }

    def timing_record(self) -> dict[str, object]:
        """How long the call to a server took, as `--json` and the manifest have it."""
        return {} if self.round_trip is None else {"round_trip_seconds": round(self.round_trip, 3)}


class ImageWriter:
    """Writes the image at position i to `paths[i]`; `None` is standard output.

    `prepare()` comes before any weight is loaded; `close()` removes the folders that it made and
    that stayed empty. Unfinished files are in the folder `scratch`, on the same file system, or
    else beside the finished ones. `save()` may be called from several threads.
    """

    def __init__(
        self,
        paths: Sequence[Path | None],
        format: ImageFormat,
        *,
        overwrite: bool = False,
        scratch: Path | None = None,
    ) -> None:
        self.paths = paths
        self.format: ImageFormat = format
        self.overwrite = overwrite
        self.scratch = scratch
        self._made: list[Path] = []

    def check(self) -> None:
        """Raise InputError for a path that is taken or cannot be a file; changes nothing."""
        for path in self.paths:
            if path is not None:
                try:
                    _check(path, self.overwrite)
                except OSError as error:
                    raise storage_error(error, "write", path) from error

    def prepare(self) -> None:
        """Make sure that every image will find its place: check, make folders, try to write.

        Raises InputError for what the user chose wrongly, StorageError for a disk that fails.
        """
        self.check()
        try:
            for folder in dict.fromkeys(path.parent for path in self.paths if path is not None):
                self._probe(folder)
        except BaseException:
            self.close()
            raise

    def save(self, generated: GeneratedImage) -> SavedImage:
        """Write one image; raises InputError if its name was taken meanwhile, or StorageError."""
        path = self.paths[generated.index]
        data = metadata.image_file_bytes(generated, self.format)
        width, height = generated.size
        if path is None:
            _write_stdout(data)
        else:
            self._write(path, data)
        return SavedImage(
            index=generated.index,
            path=path,
            format=self.format,
            width=width,
            height=height,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            seconds=generated.seconds,
            request=generated.request,
            lock=generated.info,
            round_trip=generated.round_trip,
        )

    def close(self) -> None:
        """Remove the folders made here that hold nothing."""
        for folder in reversed(self._made):
            with suppress(OSError):
                folder.rmdir()
        self._made.clear()

    def _probe(self, folder: Path) -> None:
        try:
            self._make(folder)
            atomic.probe_folder(folder)
        except OSError as error:
            raise storage_error(error, "write to the folder", folder) from error

    def _make(self, folder: Path) -> None:
        missing = [p for p in (folder, *folder.parents) if not p.is_dir()]
        for part in reversed(missing):
            with suppress(FileExistsError):
                part.mkdir()
                self._made.append(part)

    def _write(self, path: Path, data: bytes) -> None:
        try:
            # Another run may have made the folder, and removed it again when it failed.
            self._make(path.parent)
            exclusive = not self.overwrite
            atomic.write_bytes(path, data, scratch=self.scratch, sync=True, exclusive=exclusive)
        except FileExistsError as error:
            raise _taken(path) from error
        except OSError as error:
            raise storage_error(error, "write", path) from error


def _check(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise InputError(f"The output '{path}' is a folder.", hint=f"-o '{path}/' writes into it.")
    if os.path.lexists(path) and not overwrite:
        raise _taken(path)
    if path.exists() and not path.is_file():
        raise InputError(f"The output '{path}' is a device or pipe, not a file.")
    blocked = next((p for p in path.parents if p.exists() and not p.is_dir()), None)
    if blocked:
        raise InputError(f"The output '{path}' needs a folder where '{blocked}' is a file.")


def _write_stdout(data: bytes) -> None:
    stream = stdout_bytes()
    try:
        stream.write(data)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(f"Cannot write to standard output: {os_reason(error)}.") from error


def _taken(path: Path) -> InputError:
    return InputError(f"The output '{path}' exists.", hint="--overwrite replaces it.")


def storage_error(error: OSError, action: str, path: Path) -> T2IError:
    """A file system's error: InputError where the place was chosen wrongly, or StorageError."""
    kind = InputError if error.errno in _USERS_FAULT else StorageError
    return kind(
        f"Cannot {action} '{path}': {os_reason(error)}.",
        hint="-o takes another place.",
    )
