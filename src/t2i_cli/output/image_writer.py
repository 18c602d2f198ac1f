"""Writes finished images to files, atomically, and without overwriting unless asked to."""

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from t2i_cli.backend import GeneratedImage
from t2i_cli.errors import InputError, StorageError, T2IError, os_reason
from t2i_cli.files import atomic
from t2i_cli.image_formats import ImageFormat
from t2i_cli.output import metadata
from t2i_cli.provenance import GenerationInfo
from t2i_cli.request import ResolvedRequest
from t2i_cli.terminal.console import stdout_bytes

_INVALID_PATH_ERRNOS = {
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
"""Errors that the chosen path causes; all others are failures of the storage."""


@dataclass(frozen=True, kw_only=True)
class SavedImage:
    """A saved image (`path` is `None` for standard output, a text for a URL).

    `width` and `height` are in pixels; `seconds` is the generation time, and `round_trip` the
    seconds of the HTTP request, if a server made the image; `memory` is as in GeneratedImage.
    """

    index: int
    path: Path | str | None
    format: ImageFormat
    width: int
    height: int
    size_bytes: int
    sha256: str
    seconds: float
    request: ResolvedRequest
    info: GenerationInfo
    round_trip: float | None = None
    notes: tuple[str, ...] = ()
    memory: Mapping[str, int] | None = None

    def to_json(self) -> dict[str, object]:
        """The flat object that `--json` prints: the file, the request, and the generation info."""
        info = {name: value for name, value in self.info.to_json().items() if value is not None}
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
            **info,
            "scheduler": self.request.scheduler or self.info.scheduler,
            "notes": list(self.notes),
            **({} if self.memory is None else {"memory": dict(self.memory)}),
        }

    def timing_record(self) -> dict[str, object]:
        """The duration of the HTTP request, as in `--json` and the manifest; empty without one."""
        return {} if self.round_trip is None else {"round_trip_seconds": round(self.round_trip, 3)}


class ImageWriter:
    """Writes the image at position i to `paths[i]`; `None` is standard output.

    Call `prepare()` before weights are loaded; `close()` removes the folders that were created and
    are still empty. Unfinished files are written to the folder `scratch`, which is on the same
    file system, or else beside the finished ones. `save()` is thread-safe.
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
        self._created_folders: list[Path] = []

    def check(self) -> None:
        """Raise InputError for a path that exists or cannot be a file; changes nothing."""
        for path in self.paths:
            if path is not None:
                try:
                    _check_path(path, self.overwrite)
                except OSError as error:
                    raise storage_error(error, "write", path) from error

    def prepare(self) -> None:
        """Check the paths, create their folders, and test that they are writable.

        Raises InputError for an invalid path, StorageError if the storage fails.
        """
        self.check()
        try:
            for folder in dict.fromkeys(path.parent for path in self.paths if path is not None):
                self._probe_folder(folder)
        except BaseException:
            self.close()
            raise

    def save(self, generated: GeneratedImage) -> SavedImage:
        """Write one image; raises InputError if the file exists by now, or StorageError."""
        path = self.paths[generated.index]
        data = metadata.image_file_bytes(generated, self.format)
        if path is None:
            _write_stdout(data)
        else:
            write_image_file(
                path,
                data,
                overwrite=self.overwrite,
                scratch=self.scratch,
                created_folders=self._created_folders,
            )
        return saved_image(generated, path, self.format, data)

    def close(self) -> None:
        """Remove the folders that this writer created and that are empty."""
        for folder in reversed(self._created_folders):
            with suppress(OSError):
                folder.rmdir()
        self._created_folders.clear()

    def _probe_folder(self, folder: Path) -> None:
        try:
            _make_folder(folder, self._created_folders)
            atomic.probe_folder(folder)
        except OSError as error:
            raise storage_error(error, "write to the folder", folder) from error


def write_image_file(
    path: Path,
    data: bytes,
    *,
    overwrite: bool,
    scratch: Path | None = None,
    created_folders: list[Path] | None = None,
) -> None:
    """Write a file atomically, and synced; folders that are made are added to `created_folders`.

    Raises InputError if the path is at fault, as one that exists without `overwrite`, else
    StorageError.
    """
    try:
        # Another run may have removed the folder since it was checked.
        _make_folder(path.parent, created_folders)
        atomic.write_bytes(path, data, scratch=scratch, sync=True, exclusive=not overwrite)
    except FileExistsError as error:
        raise exists_error(str(path)) from error
    except OSError as error:
        raise storage_error(error, "write", path) from error


def saved_image(
    generated: GeneratedImage, location: Path | str | None, format: ImageFormat, data: bytes
) -> SavedImage:
    """The record of an image that was saved as `data`."""
    width, height = generated.size
    return SavedImage(
        index=generated.index,
        path=location,
        format=format,
        width=width,
        height=height,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        seconds=generated.seconds,
        request=generated.request,
        info=generated.info,
        round_trip=generated.round_trip,
        notes=generated.notes,
        memory=generated.memory,
    )


def _make_folder(folder: Path, created: list[Path] | None) -> None:
    if folder.is_dir():
        return
    missing = [p for p in (folder, *folder.parents) if not p.is_dir()]
    for part in reversed(missing):
        with suppress(FileExistsError):
            part.mkdir()
            if created is not None:
                created.append(part)


def _check_path(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise InputError(f"The output '{path}' is a folder.", hint=f"-o '{path}/' writes into it.")
    if os.path.lexists(path) and not overwrite:
        raise exists_error(str(path))
    if path.exists() and not path.is_file():
        raise InputError(f"The output '{path}' is a device or pipe, not a file.")
    _check_folder(path.parent, path)


def check_folder(folder: Path) -> None:
    """Raise InputError if the folder for images cannot be used or created; changes nothing."""
    try:
        _check_folder(folder, folder)
    except OSError as error:
        raise storage_error(error, "write to the folder", folder) from error


def _check_folder(folder: Path, output: Path) -> None:
    """Raise InputError or OSError if the output's folder cannot be used or created."""
    for part in (folder, *folder.parents):
        try:
            is_folder = stat.S_ISDIR(os.stat(part).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(part):
                raise InputError(
                    f"The output '{output}' needs a folder where '{part}' is a link to nothing."
                ) from None
            continue
        if not is_folder:
            raise InputError(f"The output '{output}' needs a folder where '{part}' is a file.")
        if not os.access(part, os.W_OK | os.X_OK):
            raise storage_error(_write_obstacle(part), "write to the folder", part)
        return


def _write_obstacle(folder: Path) -> OSError:
    """The error of writing to a folder that `os.access` says is not writable."""
    read_only = sys.platform != "win32" and os.statvfs(folder).f_flag & os.ST_RDONLY
    number = errno.EROFS if read_only else errno.EACCES
    return OSError(number, os.strerror(number), str(folder))


def _write_stdout(data: bytes) -> None:
    stream = stdout_bytes()
    try:
        stream.write(data)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(f"Cannot write to standard output: {os_reason(error)}.") from error


def exists_error(path: str) -> InputError:
    """The error for an output that exists, without --overwrite."""
    return InputError(f"The output '{path}' exists.", hint="--overwrite replaces it.")


def storage_error(error: OSError, action: str, path: Path) -> T2IError:
    """Convert an OSError: InputError if the path is at fault, else StorageError."""
    kind = InputError if error.errno in _INVALID_PATH_ERRNOS else StorageError
    return kind(
        f"Cannot {action} '{path}': {os_reason(error)}.",
        hint="-o takes another place.",
    )
