"""`t2i inspect`: prints the metadata of images."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2i_cli.cli.options import JsonOpt
from t2i_cli.errors import InputError
from t2i_cli.terminal.console import console, escape_controls

if TYPE_CHECKING:
    from t2i_cli.output.metadata import ImageMetadata

ImagesArg = Annotated[list[Path], typer.Argument(metavar="IMAGE", help="PNG, JPEG or WebP files.")]


def inspect(images: ImagesArg, json: JsonOpt = False) -> None:
    """Print the request and the run that made an image; reads AUTOMATIC1111's images, too."""
    console.configure(json=json)
    from t2i_cli.output import metadata

    failed = 0
    for path in images:
        try:
            record = metadata.read_metadata(path)
        except InputError as error:
            if len(images) == 1:
                raise
            console.error(error)
            failed += 1
            continue
        if json:
            console.result_json({"path": str(path), **asdict(record)})
        else:
            console.result(_table(path, record))
    if failed:
        raise InputError(f"{failed} of {len(images)} images could not be read.")


def _table(path: Path, record: "ImageMetadata") -> str:
    """Format the metadata for people: a line for each known value."""
    rows: dict[str, object] = {
        "image": f"{record.format}, {record.width}x{record.height}",
        "prompt": record.request.get("prompt"),
        "negative prompt": record.request.get("negative_prompt"),
    }
    if record.source == "t2i":
        rows |= {"made by": "t2i", **record.request, **record.lock}
        rows["notes"] = "\n".join(record.notes)
        rows["scheduler"] = record.request.get("scheduler") or rows.get("scheduler")
    else:
        # The settings as written: the text has more than t2i's request fields.
        rows |= {"made by": "AUTOMATIC1111 or a relative", **record.parameters}
    texts = {name.replace("_", " "): _text(value) for name, value in rows.items()}
    width = max(len(name) for name, text in texts.items() if text) + 2
    lines = [str(path)]
    for name, text in texts.items():
        if text:
            indented = text.replace("\n", "\n" + " " * (width + 2))
            lines.append(f"  {name:{width}}{indented}")
    # The file is untrusted, and its text could contain control characters.
    return escape_controls("\n".join(lines))


def _text(value: object) -> str:
    """Format a value; empty if it is not known."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
