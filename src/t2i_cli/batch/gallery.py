"""index.html: every image of a folder on one page, which needs nothing but the folder.

An index.html that is not t2i's stays; the page is gallery.html then.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from t2i_cli.batch import manifest
from t2i_cli.errors import InputError
from t2i_cli.files import atomic
from t2i_cli.files.state_files import free_or_own_path, read_beginning
from t2i_cli.output.image_writer import storage_error
from t2i_cli.request_fields import SHOWN

GALLERY_NAME = "index.html"
GALLERY_NAMES = (GALLERY_NAME, "gallery.html")
_MARKER = b'<meta name="generator" content="t2i">'
_EARLIER = (b"<title>t2i batch</title>", b"\nconst entries = [")
"""What a page of a version without the marker is known by."""
_HEAD = 16_384
"""Bytes in which they stand."""


def write_gallery(folder: Path, scratch: Path) -> Path:
    """Write the page over all of the folder's manifests; `scratch` takes it while unfinished.

    Raises StorageError, and InputError where others' pages have both names.
    """
    page = free_or_own_path((folder / name for name in GALLERY_NAMES), is_own_gallery)
    if page is None:
        raise InputError(
            f"Neither {' nor '.join(GALLERY_NAMES)} in '{folder}' is t2i's: "
            "no gallery without a place."
        )
    latest: dict[str, dict[str, object]] = {}
    for path in manifest.manifest_files(folder):
        for record in manifest.read_records(path):
            if record is not None and "status" in record:
                latest[str(record.get("id") or f"line {record.get('line')}")] = _entry(record)
    entries = sorted(latest.values(), key=lambda entry: int(str(entry["index"] or 0)))
    template = Path(__file__).with_name("gallery.html").read_text(encoding="utf-8")
    # No prompt can end the script: "<" is written as JSON's escape for it.
    data = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    data = data.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    text = template.replace("/*ENTRIES*/[]", data)
    try:
        atomic.write_text(page, text, scratch=scratch)
    except OSError as error:
        raise storage_error(error, "write", page) from error
    return page


def is_own_gallery(page: Path) -> bool:
    """Whether a page is a gallery that t2i made. Raises OSError."""
    head = read_beginning(page, _HEAD)
    return _MARKER in head or all(sign in head for sign in _EARLIER)


def _entry(record: Mapping[str, object]) -> dict[str, object]:
    """What the page shows of a manifest's line."""
    request = record.get("request")
    asked = request if isinstance(request, dict) else {}
    error = record.get("error")
    message = error.get("message") if isinstance(error, dict) else record.get("message")
    return {
        "index": record.get("index"),
        "status": record["status"],
        "file": record.get("file"),
        "prompt": asked.get("prompt") or f"line {record.get('line')} of the prompts file",
        "settings": {n: asked[n] for n in SHOWN if isinstance(asked.get(n), str | int | float)},
        "seconds": record.get("seconds"),
        "message": message,
    }
