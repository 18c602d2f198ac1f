"""Stands in for a file of weights that lies elsewhere: its header alone, in a sparse file.

The file is as long as the whole one, so that whatever describes, plans or checks by headers works
before a download.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from t2i_cli.errors import ModelError, StorageError, os_reason
from t2i_cli.models import gguf_header
from t2i_cli.models.checkpoint_file import read_checkpoint

_BEGINNINGS = (2**20, 2**24, 10**8)
"""Bytes that are read of a file, one after the other, until they hold its header."""


def keep_header(path: Path, size: int, read: Callable[[int], bytes]) -> Path:
    """Write the header of a file of `size` bytes to `path`, unless it is there; the path.

    `read` gives the first bytes of the file, so many. Raises T2IError.
    """
    try:
        if path.is_file() and path.stat().st_size == size:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
            # Under the same name: by its ending some files are told.
            made = Path(folder) / path.name
            for count in _BEGINNINGS:
                content = read(min(count, size))
                with open(made, "wb") as file:
                    file.write(content)
                    file.truncate(size)
                if len(content) >= size or _holds_header(made, content):
                    break
            os.replace(made, path)
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {os_reason(error)}.") from error
    return path


def _holds_header(path: Path, content: bytes) -> bool:
    """Whether the beginning of a file has its whole header; true of what has none."""
    if not content.startswith(gguf_header.GGUF_MAGIC):
        length = int.from_bytes(content[:8], "little")
        return length > _BEGINNINGS[-1] or 8 + length <= len(content)
    try:
        # Past the beginning are zeros: names without letters.
        return not any(not name.strip("\0") for name in read_checkpoint(path).tensors)
    except ModelError:
        return False
