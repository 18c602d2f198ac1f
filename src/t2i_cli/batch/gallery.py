"""Writes index.html: all images of a batch's folder on one page without external resources.

If an index.html exists that t2i did not write, the page is written to gallery.html instead.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from t2i_cli.batch import manifest
from t2i_cli.batch.batch_folder import BatchFolder
from t2i_cli.batch.generate_command import generate_command
from t2i_cli.errors import InputError
from t2i_cli.request_fields import DISPLAY_FIELDS

GALLERY_NAME = "index.html"
GALLERY_NAMES = (GALLERY_NAME, "gallery.html")
_MARKER = b'<meta name="generator" content="t2i">'
_LEGACY_MARKERS = (b"<title>t2i batch</title>", b"\nconst entries = [")
"""Identify pages by versions of t2i that wrote no marker."""
_HEAD_BYTES = 16_384
"""Bytes at the start of a page that contain the markers."""


def write_gallery(folder: BatchFolder, lora_dir: str | None = None) -> str:
    """Write the page for all manifests of the folder; returns its name.

    `lora_dir` is the folder whose LoRAs have names, which the commands on the page need.
    Raises T2IError, as InputError if both names are taken by pages that t2i did not write.
    """
    page = gallery_name(folder)
    table, _ = manifest.read_table(folder, dict)
    invalid = {record.get("line"): record for record in table.invalid.values()}
    now = [_gallery_entry(r, lora_dir) for r in (*invalid.values(), *table.current.values())]
    earlier = [_gallery_entry(r, lora_dir) | {"earlier": True} for r in table.earlier.values()]
    # Stable sorts: rows in the order of the prompts file, those of earlier requests after them.
    entries = [*sorted(now, key=_position), *sorted(earlier, key=_position)]
    template = Path(__file__).with_name("gallery.html").read_text(encoding="utf-8")
    # Escape "<", so that no prompt can close the script element.
    data = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    data = data.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    text = template.replace("/*ENTRIES*/[]", data)
    text = text.replace("/*POLICY*/", _content_policy(text), 1)
    folder.write_page(page, text.encode())
    return page


def gallery_name(folder: BatchFolder) -> str:
    """The name for the page. Raises InputError if both are taken."""
    page = folder.page_name(GALLERY_NAMES, is_own_gallery)
    if page is None:
        raise InputError(
            f"Neither {' nor '.join(GALLERY_NAMES)} in '{folder.location()}' is t2i's: "
            "no gallery without a place."
        )
    return page


def _content_policy(page: str) -> str:
    """A policy under which nothing but the page's own style and script acts, or is loaded."""
    hashes = {}
    for tag in ("style", "script"):
        content = page.partition(f"<{tag}>")[2].rpartition(f"</{tag}>")[0]
        digest = hashlib.sha256(content.encode()).digest()
        hashes[tag] = f"'sha256-{base64.b64encode(digest).decode()}'"
    return (
        f"default-src 'none'; img-src 'self' file:; style-src {hashes['style']}; "
        f"script-src {hashes['script']}; base-uri 'none'; form-action 'none'"
    )


def is_own_gallery(page: BinaryIO) -> bool:
    """Whether t2i wrote the page. Raises OSError."""
    head = page.read(_HEAD_BYTES)
    return _MARKER in head or all(marker in head for marker in _LEGACY_MARKERS)


def _position(entry: Mapping[str, object]) -> int:
    return int(str(entry["index"] or 0))


def _gallery_entry(record: Mapping[str, object], lora_dir: str | None) -> dict[str, object]:
    """Select the fields of a manifest line that the page shows."""
    request = record.get("request")
    fields = request if isinstance(request, dict) else {}
    error = record.get("error")
    message = error.get("message") if isinstance(error, dict) else record.get("message")
    return {
        "index": record.get("index"),
        "status": record["status"],
        "file": record.get("file"),
        "prompt": fields.get("prompt") or f"line {record.get('line')} of the prompts file",
        "settings": {
            n: fields[n] for n in DISPLAY_FIELDS if isinstance(fields.get(n), str | int | float)
        },
        "seconds": record.get("seconds"),
        "message": message,
        "command": generate_command(record, lora_dir),
    }
