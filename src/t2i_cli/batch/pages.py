"""Writes the pages of a batch's folder: gallery and contact sheet."""

from t2i_cli.batch import contact_sheet, gallery
from t2i_cli.batch.batch_folder import BatchFolder
from t2i_cli.batch.plan import BatchPlan
from t2i_cli.errors import T2IError
from t2i_cli.terminal.console import Console

_USUAL_NAMES = {"gallery": gallery.GALLERY_NAME, "sheet": contact_sheet.SHEET_NAME}


def check_page_names(folder: BatchFolder, *, sheet: bool) -> None:
    """Raise InputError, before any image is made, if the pages' names are taken."""
    gallery.gallery_name(folder)
    if sheet:
        contact_sheet.sheet_name(folder)


def write_pages(
    batch_plan: BatchPlan,
    console: Console,
    error: T2IError | None,
    *,
    sheet: bool,
    lora_dir: str | None,
    hint: str,
) -> tuple[dict[str, str | None], T2IError | None]:
    """Write gallery and contact sheet; returns their paths, and `error` or else their own.

    `lora_dir` is the folder whose LoRAs have names; `hint` is that of their own error.
    """
    pages: dict[str, str | None] = {"gallery": None, "sheet": None}
    for kind in ("gallery", "sheet") if sheet else ("gallery",):
        try:
            page = kind == "gallery"
            name = (
                gallery.write_gallery(batch_plan.folder, lora_dir)
                if page
                else _write_sheet(batch_plan, console)
            )
        except T2IError as page_error:
            # Not fatal: the images are done, and the next run writes both pages again.
            if error:
                console.warn(page_error.message)
            else:
                error = type(page_error)(page_error.message, hint=hint)
        else:
            pages[kind] = batch_plan.folder.location(name)
            note_unusual_name(batch_plan.folder, name, _USUAL_NAMES[kind], console)
    return pages, error


def _write_sheet(batch_plan: BatchPlan, console: Console) -> str:
    if len(batch_plan.rows) > contact_sheet.MAX_IMAGES:
        shown = f"the first {contact_sheet.MAX_IMAGES:,} of {len(batch_plan.rows):,} images"
        console.warn(f"{contact_sheet.SHEET_NAME} shows {shown}.")
    return contact_sheet.write_sheet(batch_plan)


def note_unusual_name(folder: BatchFolder, name: str, usual: str, console: Console) -> None:
    """Print the path of a gallery or sheet whose usual name was taken."""
    if name != usual:
        usual, found = folder.location(usual), folder.location(name)
        console.note(f"'{usual}' is not t2i's and stays as it is; see '{found}'.")
