"""File names from templates: one path for each request."""

import os
import re
import sys
import unicodedata
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePath
from string import Formatter

from t2i_cli.errors import InputError
from t2i_cli.image_formats import EXTENSIONS, IMAGE_FORMATS, MAX_WEBP_SIDE, ImageFormat
from t2i_cli.known_names import name_choices, suggest_name
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_adapters import adapter_options
from t2i_cli.request_extras import extras_text
from t2i_cli.request_fields import FIELDS

DEFAULT_OUTPUT_TEMPLATE = "{slug}-{seed}.{ext}"
MAX_NAME_BYTES = 255
"""Limit of one path component on ext4 and APFS, in UTF-8; NTFS has 255 UTF-16 units."""
MAX_VALUE_BYTES = 160
"""Limit of one placeholder's value, so that a name holds two or three of them."""
MAX_SLUG = 40
"""Largest length of a slug in characters."""


@dataclass(frozen=True, kw_only=True)
class TemplateContext:
    """The image to be named; `index` counts the run's images from 1, `id` is its request's."""

    index: int
    id: str
    request: ResolvedRequest
    format: ImageFormat


def _field_value(name: str, image: TemplateContext) -> object:
    """A field of the request as text; `none` if it is not set."""
    value = FIELDS[name].json_value(getattr(image.request, name))
    if isinstance(value, list):
        return "-".join(adapter_options(value))
    return "none" if value is None else extras_text(value) if isinstance(value, dict) else value


PLACEHOLDERS: dict[str, Callable[[TemplateContext], object]] = {
    "index": lambda image: image.index,
    "seed": lambda image: image.request.seed,
    "slug": lambda image: slugify(image.request.prompt),
    "model": lambda image: image.request.model,
    "ext": lambda image: EXTENSIONS[image.format],
    "id": lambda image: image.id,
    **{name: partial(_field_value, name) for name in FIELDS if name not in {"seed", "model"}},
}
"""Placeholders of a template, with the functions that give their values."""

_UNSAFE = re.compile(r'[/\\:*?"<>|\s\x00-\x1f\x7f]')
WINDOWS_RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{device}{digit}" for device in ("COM", "LPT") for digit in "123456789¹²³"
}
"""Names of devices; Windows takes superscript digits, too (`ntpath.isreserved` has the list)."""


@dataclass(frozen=True, kw_only=True)
class OutputTemplate:
    """A template for paths (`None`: standard output), and the image format."""

    template: str | None
    format: ImageFormat


def parse_output(
    output: str | None, format: str | None, *, is_folder: bool = False
) -> OutputTemplate:
    """Parse `--output` and `--format`; `is_folder` says that `output` is an existing folder.

    Raises InputError for an unknown format or placeholder, or if the two options contradict.
    """
    requested_format = _parse_format(format)
    if output == "-":
        return OutputTemplate(template=None, format=requested_format or "png")
    template = DEFAULT_OUTPUT_TEMPLATE if output is None else output
    _check_characters(template)
    if is_folder:
        # Braces in the name of an existing folder are literal.
        template = os.path.join(template.replace("{", "{{").replace("}", "}}"), "")
    if template.endswith(("/", os.sep)):
        template += DEFAULT_OUTPUT_TEMPLATE
    extension = template_extension(template)
    if extension is None:
        return OutputTemplate(template=template, format=requested_format or "png")
    if extension == "":
        if requested_format is None:
            raise InputError(
                f"The output {template!r} has no file extension.",
                hint="End it in .png, .jpg or .webp, or in / for a folder.",
            )
        return OutputTemplate(template=template, format=requested_format)
    format_by_extension = IMAGE_FORMATS.get(extension.lower())
    if format_by_extension is None:
        raise InputError(
            f"The output {template!r} has the unknown extension .{extension}; "
            "t2i writes .png, .jpg, .jpeg and .webp.",
            hint=suggest_name(extension, IMAGE_FORMATS).strip() or None,
        )
    if requested_format not in (None, format_by_extension):
        raise InputError(f"--format {format} contradicts the extension of the output {template!r}.")
    return OutputTemplate(template=template, format=format_by_extension)


def output_paths(target: OutputTemplate, requests: Sequence[ResolvedRequest]) -> list[Path | None]:
    """One path for each request, `None` for standard output.

    Raises InputError if two images would have the same path, or one is too large for its format.
    """
    if target.format == "webp":
        for request in requests:
            if max(request.width or 0, request.height or 0) > MAX_WEBP_SIDE:
                raise InputError(f"WebP holds at most {MAX_WEBP_SIDE:,} pixels a side; use png.")
    if target.template is None:
        if len(requests) > 1:
            raise InputError(
                f"Standard output takes one image, not {len(requests)}.",
                hint="Name a folder: -o images/",
            )
        return [None] * len(requests)
    return [Path(name) for name in output_names(target, requests)]


def output_names(target: OutputTemplate, requests: Sequence[ResolvedRequest]) -> list[str]:
    """One name for each request, of a file or an object. Raises InputError if two are the same."""
    template = target.template or DEFAULT_OUTPUT_TEMPLATE
    names: list[str] = []
    for index, image in enumerate(requests, 1):
        identity, format = image.identity(), target.format
        context = TemplateContext(index=index, id=identity, request=image, format=format)
        names.append(render_template(template, context))
    taken: set[str] = set()
    for name in names:
        key = normalised_name(os.path.normpath(name))
        if key in taken:
            raise InputError(
                f"Several images would be written to {name!r}.",
                hint=f"Number them with a template: -o '{_numbered_template(template)}'",
            )
        taken.add(key)
    return names


def slugify(prompt: str) -> str:
    """Make a short file name of a prompt: lower-case letters and digits of any script, dashes."""
    if prompt.isascii():
        words: list[str] = re.findall("[a-z0-9]+", prompt.lower())
    else:
        # Keep combining marks: in many scripts they are vowels.
        kept = (
            c if unicodedata.category(c)[0] in "LNM" else "-"
            for c in unicodedata.normalize("NFKC", prompt).lower()
        )
        words = [word for word in "".join(kept).split("-") if word]
    if not words:
        return "image"
    short = words[0][:MAX_SLUG]
    for word in words[1:]:
        if len(short) + 1 + len(word) > MAX_SLUG:
            break
        short += f"-{word}"
    return short


def existing_parent(path: Path) -> Path:
    """The path itself if it exists, else its nearest existing parent."""
    whole = Path(os.path.abspath(path))
    return next((p for p in (whole, *whole.parents) if os.path.exists(p)), Path(whole.anchor))


def normalised_name(path: str) -> str:
    """Normalise case and Unicode form, which some file systems ignore.

    "A.png" and "a.png" become equal, as do the composed and decomposed "é".
    """
    return path.casefold() if path.isascii() else unicodedata.normalize("NFC", path).casefold()


def _parse_format(name: str | None) -> ImageFormat | None:
    if name is None:
        return None
    if name.lower() not in IMAGE_FORMATS:
        raise InputError(f"The format {name!r} is unknown; {name_choices(name, EXTENSIONS)}")
    return IMAGE_FORMATS[name.lower()]


def _check_characters(template: str) -> None:
    if not template:
        raise InputError("The output is empty.", hint="-o ./ writes to this folder.")
    bad = next((c for c in template if unicodedata.category(c) in ("Cc", "Cs")), None)
    if bad:
        raise InputError(
            f"The output has the character U+{ord(bad):04X}, which no file name should have."
        )


@lru_cache(maxsize=1024)
def _parse_template(template: str) -> tuple[tuple[str, str | None, str], ...]:
    """Parse a template to tuples of text, placeholder (or `None`) and format spec.

    Raises InputError for invalid syntax and unknown placeholders.
    """
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        # Formatter raises a plain ValueError for an unmatched brace.
        raise InputError(
            f"The output {template!r} is no template: {error}.",
            hint="A brace that belongs to the name is written twice: {{ or }}.",
        ) from error
    for _, name, spec, conversion in parsed:
        if name is None:
            continue
        if name not in PLACEHOLDERS or conversion:
            wrong = f"{name}!{conversion}" if conversion else name
            raise InputError(
                f"The output {template!r} has the unknown placeholder {{{wrong}}}; "
                f"use any of: {' '.join(f'{{{p}}}' for p in PLACEHOLDERS)}.",
                hint=f"{suggest_name(name, PLACEHOLDERS)}"
                "A brace that belongs to the name is written twice: {{ or }}.",
            )
        if any(
            len(number) > 9 or int(number) > MAX_NAME_BYTES
            for number in re.findall(r"\d+", spec or "")
        ):
            raise InputError(f"The placeholder {{{name}:{spec}}} is wider than any file name.")
    return tuple((text, name, spec or "") for text, name, spec, _ in parsed)


def template_extension(template: str) -> str | None:
    """The template's extension without its dot, "" if there is none; `None` if it is `{ext}`."""
    text, name, _ = _parse_template(template)[-1]
    if name == "ext":
        return None
    return "" if name else PurePath(f"x{text}").suffix[1:]


def paths_without_seed(
    target: OutputTemplate, requests: Sequence[ResolvedRequest]
) -> list[str | None]:
    """The paths of requests whose seeds are still to be drawn: `{seed}` and `{id}` stay in them."""
    return [
        None
        if target.template is None
        else render_template(
            target.template,
            TemplateContext(
                index=index, id=request.identity(), request=request, format=target.format
            ),
            unfilled=("seed", "id"),
        )
        for index, request in enumerate(requests, 1)
    ]


def render_template(template: str, image: TemplateContext, unfilled: Container[str] = ()) -> str:
    """Fill in a template for an image; raises InputError if the path is invalid.

    The placeholders `unfilled` stay as they are.
    """
    filled = ""
    for text, name, spec in _parse_template(template):
        filled += text
        if name is not None and name in unfilled:
            filled += f"{{{name}}}"
        elif name is not None:
            filled += _format_value(PLACEHOLDERS[name](image), name, spec)
    for part in PurePath(filled).parts if len(filled) > MAX_NAME_BYTES // 4 else ():
        if len(part.encode()) > MAX_NAME_BYTES:
            raise InputError(
                f"The name {part[:40]!r}… has {len(part.encode())} bytes; "
                f"file systems take at most {MAX_NAME_BYTES}."
            )
    if not _is_encodable(filled):
        raise InputError(
            f"The name {filled!r} has characters that the encoding of file names on this system, "
            f"{sys.getfilesystemencoding()}, lacks.",
            hint="A UTF-8 locale has all: LC_ALL=C.UTF-8",
        )
    return filled


def _is_encodable(text: str) -> bool:
    """Whether file names can have the characters in this process's locale."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _format_value(value: object, name: str, spec: str) -> str:
    """Format a placeholder's value so that it is safe in file names on any system."""
    try:
        text = format(value, spec)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"The placeholder {{{name}:{spec}}} cannot be written that way: {error}."
        ) from error
    if text.isdecimal() and len(text) <= MAX_VALUE_BYTES // 4:
        return text
    safe = _UNSAFE.sub("-", text.strip("-. /"))
    if not safe.isascii():
        safe = "".join(
            "-" if unicodedata.category(c)[0] == "C" or not _is_encodable(c) else c for c in safe
        )
    safe = safe.encode()[:MAX_VALUE_BYTES].decode(errors="ignore").strip("-. ") or "none"
    # Windows treats these as devices, whatever follows a dot.
    device, dot, rest = safe.partition(".")
    return f"{device}_{dot}{rest}" if device.upper() in WINDOWS_RESERVED else safe


def _numbered_template(template: str) -> str:
    stem, dot, ext = template.rpartition(".")
    return f"{stem}-{{index}}{dot}{ext}" if dot else f"{template}-{{index}}"
