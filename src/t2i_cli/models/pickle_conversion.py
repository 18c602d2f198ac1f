"""Converts a pickle of weights to safetensors, in a process that loads weights and nothing else."""

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import t2i_cli
from t2i_cli.errors import InputError, ModelError, OutOfMemoryError, StorageError, os_reason
from t2i_cli.files import atomic
from t2i_cli.files.state_files import open_regular, parse_json
from t2i_cli.models import file_digests
from t2i_cli.models.checkpoint_file import CheckpointFile, is_pickle, read_checkpoint
from t2i_cli.terminal.console import console

_SUFFIX = ".safetensors"
_MODULE = "t2i_cli.models.pickle_reader"
_BEGINNING = 512
_PASSED_ON = re.compile(
    r"PATH|HOME|LANG|LC_\w+|TE?MP(DIR)?|LD_LIBRARY_PATH|SYSTEMROOT|VIRTUAL_ENV|PYTHON\w+"
    r"|(OMP|GOMP|KMP|MKL)_\w+|COVERAGE_\w+",
    re.IGNORECASE,
)
"""Environment variables that the process gets: no tokens, no addresses."""


@dataclass(frozen=True)
class ConvertedFile:
    """A converted file, and the kinds of what is no tensor and was left out, by name."""

    file: CheckpointFile
    left_out: Mapping[str, str]


def convert_pickle(source: Path, target: Path | None) -> ConvertedFile:
    """Write a pickle's tensors to a new safetensors file, beside it unless `target` is given.

    Raises InputError if there is nothing to convert or the target exists, ModelError for a pickle
    that holds more than weights, StorageError if nothing can be written.
    """
    _check_source(source)
    target = target or _beside(source)
    if target.suffix != _SUFFIX:
        raise InputError(f"{target} does not end in {_SUFFIX}, as the new file does.")
    metadata = {
        "format": "pt",
        "converted_by": f"t2i {t2i_cli.__version__}",
        "converted_from_sha256": file_digests.sha256_of(source),
    }
    try:
        if os.path.lexists(target):
            raise FileExistsError
        with (
            _folder_made(target.parent),
            tempfile.TemporaryDirectory(prefix=".t2i-", dir=target.parent) as folder,
        ):
            # torch.load goes by the name, and reads what is called .safetensors as that.
            pickle = Path(folder, "weights.pt")
            pickle.symlink_to(source.resolve())
            written = Path(folder, f"weights{_SUFFIX}")
            left_out = _run_reader(source, pickle, written, metadata)
            read_checkpoint(written)
            written.chmod(_new_file_mode(Path(folder)))
            atomic.publish_new(written, target)
    except FileExistsError:
        raise InputError(
            f"{target} exists, and is not overwritten.", hint="-o names another file."
        ) from None
    except OSError as error:
        raise StorageError(f"Cannot write {target}: {os_reason(error)}.") from error
    return ConvertedFile(read_checkpoint(target), left_out)


def _check_source(source: Path) -> None:
    """Raise InputError unless the file is a pickle, by its first bytes or its name."""
    try:
        with os.fdopen(open_regular(source, os.O_RDONLY, follow_links=True), "rb") as stream:
            beginning = stream.read(_BEGINNING)
    except FileNotFoundError:
        raise InputError(f"There is no file {source}.") from None
    except OSError as error:
        raise InputError(f"Cannot read {source}: {os_reason(error)}.") from error
    if not is_pickle(source, beginning):
        form = read_checkpoint(source).format
        raise InputError(f"{source} is a {form} file, which needs no conversion.")


def _beside(source: Path) -> Path:
    """The default target; a pickle that is called .safetensors keeps its name."""
    target = source.with_suffix(_SUFFIX)
    return source.with_stem(f"{source.stem}-converted") if target == source else target


@contextmanager
def _folder_made(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; those that are new go again when the block raises."""
    new = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        if not folder.is_dir():
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        yield
    except BaseException:
        for each in new:
            with suppress(OSError):
                each.rmdir()
        raise


def _new_file_mode(folder: Path) -> int:
    """The mode of a new file, which the library that writes safetensors does not keep to."""
    example = folder / "mode"
    example.touch(0o666)
    return stat.S_IMODE(example.stat().st_mode)


def _run_reader(
    source: Path, pickle: Path, target: Path, metadata: Mapping[str, str]
) -> dict[str, str]:
    """Have the process write the tensors; what it left out. Raises ModelError, StorageError."""
    command = [sys.executable, "-P", "-m", _MODULE, str(pickle), str(target), json.dumps(metadata)]
    environment = {name: v for name, v in os.environ.items() if _PASSED_ON.fullmatch(name)}
    # The process cleans up when its standard input ends, as it does when this one is killed.
    read_end, write_end = os.pipe()
    try:
        # Leaving it by an exception, as Ctrl-C raises one, kills the process.
        done = subprocess.run(  # noqa: S603 - this package's own module
            command, env=environment, stdin=read_end, capture_output=True, check=False
        )
    finally:
        os.close(read_end)
        os.close(write_end)
    if said := done.stderr.decode(errors="replace").strip():
        console.detail(said)
    try:
        report = parse_json(done.stdout)
    except ValueError:
        report = None
    if not isinstance(report, dict):
        if done.returncode == -signal.SIGKILL:
            raise OutOfMemoryError(f"The process that read {source} was killed, as for its memory.")
        raise ModelError(
            f"{source} was not converted: the process that read it ended with code "
            f"{done.returncode}.",
            hint="-v shows what it said.",
        )
    if report.get("storage"):
        raise StorageError(f"Cannot write {target}: {report['error']}.")
    if "error" in report:
        raise ModelError(f"{source} was not converted: {report['error']}.")
    left_out = report.get("left_out")
    kinds = left_out if isinstance(left_out, dict) else {}
    return {name: str(kind) for name, kind in kinds.items()}
