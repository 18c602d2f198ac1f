"""Where a part of a model is taken from in place of the model's own: a file, folder or repository.

`models/composition.py` finds what lies there; here it is parsed and written.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from t2i_cli.errors import InputError

PART_FIELDS = ("base", "vae", "text_encoder", "transformer")
"""Request fields that name parts: whose configs are used, and from where weights are taken."""

_MAX_SOURCE = 1_000
_SHA256 = re.compile("[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class PartSource(NamedTuple):
    """A file, folder or repository as the user names it, and the SHA-256 of a file's content.

    A folder's SHA-256 is that of the names and digests of its files. `sha256` is `None` until the
    source is found, and for repositories and models by name.
    """

    source: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The last part of the source, as programs show it."""
        return re.split(r"[/\\]", self.source.rstrip("/\\"))[-1]

    def __str__(self) -> str:
        return self.name

    def is_named_by(self, other: "PartSource") -> bool:
        """Whether another source means this one, by content or by name; no file is looked at."""
        if other.sha256 and self.sha256:
            return other.sha256 == self.sha256
        return other.source in {self.source, self.name}


def parse_part_source(given: object) -> PartSource | None:
    """A source from a text, or an object of source and sha256; raises InputError.

    `None` for an empty text.
    """
    source, sha256 = given, None
    if isinstance(given, Mapping):
        if not given.keys() <= {"source", "sha256"}:
            raise InputError("A part of a model is a text, or an object of source and sha256.")
        source, sha256 = given.get("source"), given.get("sha256")
        if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
            raise InputError("sha256 must have 64 hex digits.")
    if not isinstance(source, str):
        raise InputError("A part of a model is named by a text: a file, folder or repository.")
    text = source.strip()
    if len(text) > _MAX_SOURCE or _CONTROL.search(text):
        raise InputError("This cannot be the name of a file, folder or repository.")
    return PartSource(text, sha256) if text else None


def part_source_to_json(value: PartSource) -> object:
    """The source for records and bodies: a text, or an object with the content's SHA-256."""
    return {"source": value.source, "sha256": value.sha256} if value.sha256 else value.source


def part_source_identity(value: PartSource) -> str:
    """The content's SHA-256 for ids, or the name of what has none."""
    return value.sha256 or value.source


def parts_key(named: object) -> tuple[str | None, ...]:
    """What a request or a model's spec has as its parts, by content, in the order of PART_FIELDS.

    Of a source that is not found yet, and of one on the Hub, it is the name.
    """
    values = (getattr(named, name) for name in PART_FIELDS)
    return tuple(None if value is None else part_source_identity(value) for value in values)


def parts_without_paths(spec: object) -> dict[str, PartSource]:
    """The parts of a model's spec, those on this machine by the names of their files, by field."""
    found = ((name, getattr(spec, name)) for name in PART_FIELDS)
    return {
        name: own._replace(source=own.name) if own.sha256 else own
        for name, own in found
        if own is not None
    }


def find_other_part(spec: object, asked: object) -> tuple[str, str] | None:
    """A field in which a request names another part than a model has, and what it names."""
    for name in PART_FIELDS:
        wanted, own = getattr(asked, name), getattr(spec, name)
        if wanted is not None and (own is None or not own.is_named_by(wanted)):
            return name, wanted.source
    return None
