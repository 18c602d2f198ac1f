"""File names of rows, from a template or the row: valid, unique, and inside the folder."""

import re
import unicodedata
from collections.abc import Container, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePosixPath

from t2i_cli.batch.rows import BatchRow
from t2i_cli.errors import InputError
from t2i_cli.image_formats import MAX_WEBP_SIDE, ImageFormat
from t2i_cli.output import filenames
from t2i_cli.output.filenames import OutputTemplate, TemplateContext
from t2i_cli.prompts.entries import PromptProblem

DEFAULT_NAME_TEMPLATE = "{index:05d}-{slug}-{seed}.{ext}"
RESERVED_NAMES = {"index.html", "sheet.png", "t2i-sheet.png", ".t2i"}
"""Names that t2i writes into the folder, besides manifests."""
MAX_FILE_NAME = 200
"""Characters of a path below the folder: Windows allows 260 with the folder's own path."""
ID_LENGTH = 8
"""Characters of a row's id in a name that two rows would have."""

_PLACEHOLDER = re.compile(r"\{[^{}]*\}")
_FORBIDDEN = re.compile(r'[<>:"|?*\\]')
"""Characters that Windows forbids in names, and its separator."""


def check_template(template: str, format: str | None) -> None:
    """Raise InputError if no file name can follow from --name and --format."""
    filenames.parse_output(_with_extension(template), format)
    check_filename(_PLACEHOLDER.sub("x", template))


@lru_cache(maxsize=4096)
def parse_name_template(template: str, format: str | None) -> OutputTemplate:
    """Parse a template; its extension takes precedence over `format`. Raises InputError."""
    full_template = _with_extension(template)
    return filenames.parse_output(
        full_template, format if filenames.template_extension(full_template) is None else None
    )


def _with_extension(template: str) -> str:
    if not template:
        raise InputError("The name is empty.", field="name")
    return template if filenames.template_extension(template) != "" else template + ".{ext}"


def row_filename(row: BatchRow, template: str, format: str | None) -> tuple[str, ImageFormat]:
    """The row's path relative to the folder, with `/`, and its format. Raises InputError."""
    target = parse_name_template(template if row.name is None else row.name, format)
    context = TemplateContext(index=row.index, id=row.id, request=row.request, format=target.format)
    path = filenames.render_template(target.template or template, context)
    check_filename(path)
    return path, target.format


def assign_filenames(
    rows: Sequence[BatchRow],
    template: str,
    format: str | None,
    owners: Mapping[str, str],
    wanted: Container[str],
) -> tuple[dict[str, tuple[str, ImageFormat]], list[PromptProblem]]:
    """File names by row id, and problems; only the ids in `wanted` are named.

    `owners` maps names in the manifest (see `filenames.normalised_name`) to row ids. A row whose
    name another row's picture has gets a name with a part of its id.
    """
    names: dict[str, tuple[str, ImageFormat]] = {}
    problems: list[PromptProblem] = []
    taken: dict[str, BatchRow] = {}
    folders: dict[str, BatchRow] = {}
    for row in rows:
        if row.id not in wanted:
            continue
        try:
            path, image_format = row_filename(row, template, format)
            _check_size(row, image_format)
        except InputError as error:
            problems.append(PromptProblem(row.line, error.field or "name", error.message))
            continue
        if owners.get(filenames.normalised_name(path), row.id) != row.id:
            path = name_with_id(path, row.id)
        key = filenames.normalised_name(path)
        if key == path:
            key = path  # of a million names one text each is kept
        parents = [str(parent) for parent in PurePosixPath(key).parents][:-1] if "/" in key else []
        conflict = taken.get(key) or folders.get(key)
        conflict = conflict or next((taken[parent] for parent in parents if parent in taken), None)
        if conflict:
            problems.append(
                PromptProblem(
                    row.line, "name", f"{path!r} is taken by line {conflict.line} already."
                )
            )
        taken[key] = row
        folders.update(dict.fromkeys(parents, row))
        names[row.id] = (path, image_format)
    return names, problems


def row_format(row: BatchRow, template: str, format: str | None) -> ImageFormat | None:
    """The format of the row's image; `None` if its name is invalid."""
    try:
        return parse_name_template(template if row.name is None else row.name, format).format
    except InputError:
        return None


def name_with_id(path: str, row_id: str) -> str:
    """The path with a part of the row's id at the end of its name, shortened where it must be."""
    stem, dot, extension = path.rpartition(".")
    suffix = f"-{row_id[:ID_LENGTH]}{dot}{extension}"
    folder, slash, name = stem.rpartition("/")
    while name and (
        len(folder + slash + name + suffix) > MAX_FILE_NAME
        or len((name + suffix).encode()) > filenames.MAX_NAME_BYTES
    ):
        name = name[:-1]
    return f"{folder}{slash}{name.rstrip('-. ')}{suffix}"


def check_filename(path: str) -> None:
    """Raise InputError for a path that leaves the folder, or is not valid on every system."""
    if path.startswith(("/", "\\")) or path[1:2] == ":":
        raise InputError(f"{path!r} is an absolute path; names are inside the folder.")
    if len(path) > MAX_FILE_NAME:
        raise InputError(f"{path[:40]!r}… has {len(path)} characters; at most {MAX_FILE_NAME} do.")
    parts = path.split("/")
    if ".." in parts:
        raise InputError(f"{path!r} leaves the folder.")
    first = filenames.normalised_name(parts[0])
    if first in RESERVED_NAMES or (len(parts) == 1 and first.startswith("manifest")):
        raise InputError(f"{path!r} is a name that t2i uses itself.")
    if not path.isascii() and any(unicodedata.category(c) in {"Cf", "Cs"} for c in path):
        raise InputError(f"{path!r} has a character that cannot be seen.")
    for part in parts:
        if not part or part == "." or part != part.strip(" ") or part.endswith("."):
            raise InputError(f"{path!r} has a part that is empty, or ends in a dot or space.")
        if bad := _FORBIDDEN.search(part):
            raise InputError(
                f"{path!r} has the character {bad[0]}, which Windows takes in no name."
            )
        if part.partition(".")[0].rstrip().upper() in filenames.WINDOWS_RESERVED:
            raise InputError(f"{part!r} is the name of a device on Windows.")


def _check_size(row: BatchRow, format: ImageFormat) -> None:
    longest = max(row.request.width or 0, row.request.height or 0)
    if format == "webp" and longest > MAX_WEBP_SIDE:
        raise InputError(f"WebP holds at most {MAX_WEBP_SIDE:,} pixels a side; use png.")
