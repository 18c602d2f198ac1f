"""Writes sheet.png: a contact sheet of a plan's images; a grid if --vary set two fields.

If a sheet.png exists that t2i did not write, the sheet is written to t2i-sheet.png instead.
"""

from collections.abc import Sequence
from pathlib import Path

from t2i_cli.batch import manifest
from t2i_cli.batch.legacy_sheet import is_legacy_sheet
from t2i_cli.batch.plan import BatchPlan
from t2i_cli.batch.sheet_drawing import draw_sheet
from t2i_cli.batch.sheet_grids import sheet_grids
from t2i_cli.errors import InputError, T2IError
from t2i_cli.files import atomic
from t2i_cli.files.inside_folder import stat_inside
from t2i_cli.files.state_files import free_or_own_path
from t2i_cli.output.image_writer import storage_error

SHEET_NAME = "sheet.png"
SHEET_NAMES = (SHEET_NAME, "t2i-sheet.png")
MAX_IMAGES = 1_000
_MARKER = ("Software", "t2i")
"""A text chunk of the sheet's PNG file; t2i's images have no chunk of that name."""


def write_sheet(plan: BatchPlan, scratch: Path) -> Path:
    """Write a sheet of the first MAX_IMAGES images of the plan; returns its path.

    `scratch` is the folder for the unfinished file. Raises StorageError, and InputError if both
    names are taken by files that t2i did not write.
    """
    from PIL.PngImagePlugin import PngInfo

    folder = plan.folder
    files = _picture_files(folder)
    target = sheet_path(folder)
    sheet = draw_sheet(sheet_grids(plan.rows[:MAX_IMAGES]), files)
    info = PngInfo()
    info.add_text(*_MARKER)
    try:
        with atomic.open_atomic(target, scratch=scratch) as file:
            sheet.save(file, "PNG", pnginfo=info)
    except OSError as error:
        raise storage_error(error, "write", folder / SHEET_NAME) from error
    return target


def sheet_path(folder: Path) -> Path:
    """The path for the sheet. Raises InputError if both names are taken."""
    images = list(_picture_files(folder).values())
    target = free_or_own_path(
        (folder / name for name in SHEET_NAMES), lambda path: is_own_sheet(path, images)
    )
    if target is None:
        raise InputError(
            f"Neither {' nor '.join(SHEET_NAMES)} in '{folder}' is t2i's: no sheet without a place."
        )
    return target


def _picture_files(folder: Path) -> dict[str, Path]:
    """The pictures that the manifests list, by row id; those of links are left out."""
    return {
        row_id: folder / entry.file
        for row_id, entry in manifest.load_manifests(folder).rows.items()
        if entry.status == "done" and entry.file and _is_inside(folder, entry.file)
    }


def _is_inside(folder: Path, file: str) -> bool:
    try:
        stat_inside(folder, file)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def is_own_sheet(path: Path, images: Sequence[Path]) -> bool:
    """Whether t2i wrote the file: by its marker, or as a version without one did."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as opened:
            name, value = _MARKER
            return opened.info.get(name) == value or is_legacy_sheet(opened, images)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, T2IError):
        return False
