"""`t2i inspect`: prints the metadata of images."""

import io
import json as json_module
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from t2i_cli.buckets.bucket_url import is_bucket_url
from t2i_cli.cli.options import JsonOpt
from t2i_cli.errors import InputError, os_reason
from t2i_cli.files.user_paths import expand_option
from t2i_cli.terminal.console import console, escape_controls

if TYPE_CHECKING:
    from t2i_cli.output.metadata import ImageMetadata

ImagesArg = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE",
        help="PNG, JPEG, WebP, AVIF or JPEG XL files; folders, with those in them; "
        "- reads one from standard input.",
    ),
]
_EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".jxl"}
_STDIN = "standard input"
_PROGRAMS = {
    "t2i": "t2i",
    "a1111": "AUTOMATIC1111 or a relative",
    "comfyui": "ComfyUI",
    "invokeai": "InvokeAI",
    "novelai": "NovelAI",
    "fooocus": "Fooocus",
    "swarmui": "SwarmUI",
    "drawthings": "Draw Things",
}
_GRAPHS = ("prompt", "workflow")


class _Source(NamedTuple):
    """A file to read, and the folder in which it was found, if it was not named itself."""

    path: Path
    folder: Path | None


def inspect(images: ImagesArg, json: JsonOpt = False) -> None:
    """Print the request and the run that made an image; reads other programs' images, too."""
    console.configure(json=json)
    from t2i_cli.output.metadata import NoRecordError

    if url := next(filter(is_bucket_url, images), None):
        raise InputError(
            f"'{url}' is a URL; inspect reads files of this machine.",
            hint="Copy the image first, or pipe it: … | t2i inspect -",
        )
    paths = [Path(expand_option(image)) for image in images]
    sources = [source for path in paths for source in _find_sources(path)]
    failed = shown = 0
    for path, folder in sources:
        try:
            record = _read(path)
        except InputError as error:
            if len(sources) == 1 and folder is None:
                raise
            if folder is not None and isinstance(error, NoRecordError):
                # A folder may hold other images, too, as a sheet or an upscaled photograph.
                console.note(error.message)
                continue
            console.error(error)
            failed += 1
            continue
        shown += 1
        name = _STDIN if path == Path("-") else str(path)
        for problem in record.problems:
            console.warn(f"'{name}': {problem}.")
        if json:
            console.result_json({"path": str(path), **record.to_json()})
        else:
            console.result(_table(name, record))
    if failed:
        raise InputError(f"{failed} of {len(sources)} images could not be read.")
    if not shown:
        raise InputError(f"None of {len(sources)} images says how it was made.")


def _find_sources(path: Path) -> Iterator[_Source]:
    """The path itself, or the images in a folder and its folders, in order of their names.

    Hidden files and folders, and links to folders, are left out. Raises InputError.
    """
    if str(path) == "-" or not os.path.isdir(path):
        yield _Source(path, None)
        return
    found = False
    for folder, folders, files in os.walk(path, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in _EXTENSIONS:
                found = True
                yield _Source(Path(folder, name), path)
    if not found:
        raise InputError(f"There is no image in the folder '{path}'.")


def _raise_unreadable(error: OSError) -> None:
    raise InputError(f"Cannot read the folder '{error.filename}': {os_reason(error)}.") from error


def _read(path: Path) -> "ImageMetadata":
    """Read an image's metadata. Raises InputError."""
    from t2i_cli.output import metadata
    from t2i_cli.output.image_texts import MAX_IMAGE_BYTES

    if str(path) != "-":
        return metadata.read_metadata(path)
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("There is no image on standard input.", hint="Pipe one into it.")
    try:
        # One byte more than is read of any image, so that a longer one is refused.
        data = sys.stdin.buffer.read(MAX_IMAGE_BYTES + 1)
        return metadata.read_open_metadata(io.BytesIO(data), _STDIN)
    except OSError as error:
        raise InputError(f"Cannot read standard input: {os_reason(error)}.") from error


def _table(name: str, record: "ImageMetadata") -> str:
    """Format the metadata for people: a line for each known value."""
    size = f", {record.width}x{record.height}" if record.width else ""
    rows: dict[str, object] = {
        "image": f"{record.format}{size}",
        "prompt": record.request.get("prompt"),
        "negative prompt": record.request.get("negative_prompt"),
        "made by": _PROGRAMS[record.source],
    }
    if record.source == "t2i":
        rows |= {**record.request, **record.lock}
        rows["notes"] = "\n".join(record.notes)
        rows["scheduler"] = record.request.get("scheduler") or rows.get("scheduler")
        texts = {name.replace("_", " "): _text(value) for name, value in rows.items()}
    else:
        # The settings as written: the text has more than t2i's request fields.
        texts = {name: _text(value) for name, value in rows.items()} | _settings(record)
    width = max(len(label) for label, text in texts.items() if text) + 2
    lines = [name]
    for label, text in texts.items():
        if text:
            indented = text.replace("\n", "\n" + " " * (width + 2))
            lines.append(f"  {label:{width}}{indented}")
    # The file is untrusted, and its text could contain control characters.
    return escape_controls("\n".join(lines))


def _settings(record: "ImageMetadata") -> dict[str, str]:
    """Another program's settings as it wrote them, but for the prompts and ComfyUI's graphs."""
    shown = {str(record.request.get(name)) for name in ("prompt", "negative_prompt")}
    texts = {} if record.source == "a1111" else {"model": _text(record.request.get("model"))}
    for key, value in record.parameters.items():
        if record.source == "comfyui" and key in _GRAPHS and isinstance(value, dict):
            texts[f"graph {key!r}"] = "yes; --json prints it"
        elif isinstance(value, dict | list | bool):
            texts[key] = json_module.dumps(value, ensure_ascii=False)
        elif value is not None and str(value) not in shown:
            texts[key] = str(value)
    return texts


def _text(value: object) -> str:
    """Format a value; empty if it is not known."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_text(each) for each in value)
    return str(value)
