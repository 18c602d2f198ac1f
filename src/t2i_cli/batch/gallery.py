"""index.html: every image of a folder on one page, which needs nothing but the folder."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from t2i_cli.batch import manifest
from t2i_cli.sink import translated

PAGE = "index.html"
_SETTINGS = (
    *("model", "seed", "steps", "guidance_scale", "width", "height", "scheduler"),
    "negative_prompt",
)


def write(folder: Path, scratch: Path) -> Path:
    """Write the page over all of the folder's manifests; `scratch` takes it while unfinished.

    Raises StorageError.
    """
    latest: dict[str, dict[str, object]] = {}
    for path in manifest.files(folder):
        for record in manifest.records(path):
            if record is not None and "status" in record:
                latest[str(record.get("id") or f"line {record.get('line')}")] = _entry(record)
    entries = sorted(latest.values(), key=lambda entry: int(str(entry["index"] or 0)))
    template = Path(__file__).with_name("gallery.html").read_text(encoding="utf-8")
    # No prompt can end the script: "<" is written as JSON's escape for it.
    data = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    data = data.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    page, unfinished = folder / PAGE, scratch / PAGE
    text = template.replace("/*ENTRIES*/[]", data)
    try:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        os.replace(unfinished, page)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise translated(error, "write", page) from error
    return page


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
        "settings": {n: asked[n] for n in _SETTINGS if asked.get(n) is not None},
        "seconds": record.get("seconds"),
        "message": message,
    }
