"""Writes sheet.png: a contact sheet of a plan's images; a grid if --vary set two fields.

If a sheet.png exists that t2i did not write, the sheet is written to t2i-sheet.png instead.
"""

import io
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from t2i_cli.batch import manifest
from t2i_cli.batch.batch_folder import BatchFolder
from t2i_cli.batch.legacy_sheet import is_legacy_sheet
from t2i_cli.batch.plan import BatchPlan
from t2i_cli.batch.sheet_drawing import draw_sheet
from t2i_cli.batch.sheet_grids import sheet_grids
from t2i_cli.errors import InputError, T2IError

SHEET_NAME = "sheet.png"
SHEET_NAMES = (SHEET_NAME, "t2i-sheet.png")
MAX_IMAGES = 1_000
_MARKER = ("Software", "t2i")
"""A text chunk of the sheet's PNG file; t2i's images have no chunk of that name."""


def write_sheet(plan: BatchPlan) -> str:
    """Write a sheet of the first MAX_IMAGES images of the plan; returns its name.

    Raises T2IError, as InputError if both names are taken by files that t2i did not write.
    """
    from PIL.PngImagePlugin import PngInfo

    shown = plan.rows[:MAX_IMAGES]
    name = sheet_name(plan.folder)
    with _picture_files(plan.folder, {row.id for row in shown}) as files:
        sheet = draw_sheet(sheet_grids(shown), files)
    info = PngInfo()
    info.add_text(*_MARKER)
    data = io.BytesIO()
    sheet.save(data, "PNG", pnginfo=info)
    plan.folder.write_page(name, data.getvalue())
    return name


def sheet_name(folder: BatchFolder) -> str:
    """The name for the sheet. Raises InputError if both are taken."""

    def is_ours(file: BinaryIO) -> bool:
        if is_own_sheet(file, ()):
            return True
        with _picture_files(folder) as files:
            file.seek(0)
            return is_own_sheet(file, list(files.values()))

    name = folder.page_name(SHEET_NAMES, is_ours)
    if name is None:
        raise InputError(
            f"Neither {' nor '.join(SHEET_NAMES)} in '{folder.location()}' is t2i's: "
            "no sheet without a place."
        )
    return name


def _picture_files(
    folder: BatchFolder, row_ids: Collection[str] | None = None
) -> AbstractContextManager[Mapping[str, Path]]:
    """The pictures that the manifests list, by row id, or those of `row_ids`; none of links."""
    return folder.local_copies(
        {
            row_id: entry.file
            for row_id, entry in manifest.load_manifests(folder).rows.items()
            if entry.status == "done" and entry.file and (row_ids is None or row_id in row_ids)
        }
    )


def is_own_sheet(file: BinaryIO, images: Sequence[Path]) -> bool:
    """Whether t2i wrote the file: by its marker, or as a version without one did."""
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG",)) as opened:
            name, value = _MARKER
            return opened.info.get(name) == value or is_legacy_sheet(opened, images)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, T2IError):
        return False
