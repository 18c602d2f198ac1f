"""LoRAs and embeddings in a request: `--lora FILE:0.8`, `--embedding FILE:token`, objects in JSON.

Here they are parsed and bounded; what a source means: `models/adapter_sources.py`.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from t2i_cli.errors import InputError

AdapterKind = Literal["lora", "embedding"]
MAX_ADAPTER_WEIGHT = 10.0
"""Weights lie from minus this to this; beyond a few, images are noise."""
MAX_ADAPTERS = 16
"""Adapters of one kind in one request."""
_MAX_SOURCE = 1_000
_MAX_SHOWN = 60
_FIELDS: Mapping[AdapterKind, str] = {"lora": "loras", "embedding": "embeddings"}
_WEIGHT = re.compile(r"[-+]?(?:\d{1,6}(?:\.\d{0,20})?|\.\d{1,20})(?:e[-+]?\d{1,3})?")
_ENDING = ".safetensors"
_TOKEN = re.compile(r"[^\s:/\\,;()\[\]{}\x00-\x1f]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEYS: Mapping[AdapterKind, frozenset[str]] = {
    "lora": frozenset({"source", "weight", "sha256"}),
    "embedding": frozenset({"source", "token", "sha256"}),
}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA or an embedding: its source as the user wrote it, and its weight or token.

    `source` is a file, a repository, a file in one, or a name in the folder of adapters. `digest`
    is the SHA-256 of the file's content, `None` where it is not known, as with a server's.
    """

    kind: AdapterKind
    source: str
    weight: float = 1.0
    token: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """The last part of the source, without the ending of a weights file."""
        last = re.split(r"[/\\]", self.source.rstrip("/\\"))[-1]
        return last.removesuffix(_ENDING)


Adapters = tuple[Adapter, ...]


def parse_loras(given: object) -> Adapters | None:
    """LoRAs from `SOURCE[:WEIGHT]` texts, objects, or those as JSON text; raises InputError."""
    return _parse("lora", given)


def parse_embeddings(given: object) -> Adapters | None:
    """Embeddings from `SOURCE[:TOKEN]` texts, objects, or as JSON text; raises InputError."""
    return _parse("embedding", given)


def adapters_to_json(adapters: Adapters) -> list[dict[str, object]]:
    """The objects for records and bodies."""
    found = []
    for each in adapters:
        entry: dict[str, object] = {"source": each.source}
        if each.kind == "lora":
            entry["weight"] = each.weight
        elif each.token is not None:
            entry["token"] = each.token
        found.append(entry | ({"sha256": each.digest} if each.digest else {}))
    return found


def adapters_summary(adapters: Adapters) -> str:
    """What plans call them: names, with a weight that is not 1, or the token."""
    return "; ".join(
        f"{each.name}:{each.token}"
        if each.token is not None
        else each.name + (f":{each.weight:g}" if each.weight != 1 else "")
        for each in adapters
    )


def adapters_identity(adapters: Adapters) -> list[list[object]]:
    """What identifies them in ids: the content by its digest, with weight or token, no path."""
    return [
        [each.digest or each.name, each.weight if each.kind == "lora" else each.token]
        for each in adapters
    ]


def adapter_options(entries: Iterable[Mapping[str, object]]) -> list[str]:
    """The texts that are parsed to adapters with these objects."""
    found = []
    for entry in entries:
        source, weight, token = (entry.get(key) for key in ("source", "weight", "token"))
        if isinstance(weight, int | float):
            end = f":{weight_text(weight)}"
        else:
            end = f":{token}" if token else ""
        found.append(f"{source}{end}")
    return found


def weight_text(weight: float) -> str:
    """A weight in a text, from which the same number is read: as `0.8`, and `1` for 1.0."""
    short = f"{weight:g}"
    return short if float(short) == weight else repr(weight)


def _parse(kind: AdapterKind, given: object) -> Adapters | None:
    field = _FIELDS[kind]
    if isinstance(given, str):
        text = given.strip()
        if text[:1] in {"[", "{"}:
            given = _from_json(text, field)
        else:
            given = [part for part in re.split(r"[;\n]", text) if part.strip()]
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, list | tuple):
        raise InputError(f"{field} must be a list of files or names.", field=field)
    if len(given) > MAX_ADAPTERS:
        raise InputError(
            f"There are {len(given):,} {field}; at most {MAX_ADAPTERS} are taken.", field=field
        )
    found = tuple(_one(kind, entry) for entry in given)
    _check_twice(found, field)
    return found or None


def _from_json(text: str, field: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{field} is no JSON that can be read.", field=field) from None


def _one(kind: AdapterKind, entry: object) -> Adapter:
    field = _FIELDS[kind]
    if isinstance(entry, Adapter):
        return entry
    if isinstance(entry, str):
        name, number, word = _split(kind, entry.strip())
        return Adapter(kind=kind, source=_source(name, field), weight=number, token=word)
    if not isinstance(entry, Mapping) or not entry.keys() <= _KEYS[kind] or "source" not in entry:
        keys = ", ".join(sorted(_KEYS[kind] - {"source"}))
        raise InputError(
            f"An entry of {field} must be text, or an object with source and maybe {keys}.",
            field=field,
        )
    token, digest = entry.get("token"), entry.get("sha256")
    if digest is not None and not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        raise InputError(f"A sha256 in {field} is not 64 hex digits.", field=field)
    if token is not None and not (isinstance(token, str) and _TOKEN.fullmatch(token)):
        raise InputError(f"A token in {field} must be one word of at most 64 signs.", field=field)
    weight = entry.get("weight")
    return Adapter(
        kind=kind,
        source=_source(entry["source"], field),
        weight=1.0 if weight is None else checked_weight(weight, field),
        token=token,
        digest=digest,
    )


def _split(kind: AdapterKind, text: str) -> tuple[str, float, str | None]:
    """Source, weight and token of `SOURCE[:WEIGHT]` or `SOURCE[:TOKEN]`."""
    source, colon, end = text.rpartition(":")
    if not colon or not source or end.endswith(_ENDING):
        return text, 1.0, None  # a file whose name may have a colon
    if kind == "embedding":
        return (source, 1.0, end) if _TOKEN.fullmatch(end) else (text, 1.0, None)
    if _WEIGHT.fullmatch(end):
        return source, checked_weight(float(end), "loras"), None
    if "/" in end or "\\" in end:
        return text, 1.0, None
    raise InputError(
        f"{_short(text)} is not of the form FILE:WEIGHT: {_short(end)} is no number.",
        hint="As style.safetensors:0.8.",
        field="loras",
    )


def checked_weight(weight: object, field: str) -> float:
    """A weight as a number in its range. Raises InputError."""
    if (
        isinstance(weight, bool)
        or not isinstance(weight, int | float)
        or not math.isfinite(weight)
        or not abs(weight) <= MAX_ADAPTER_WEIGHT
    ):
        shown = weight if isinstance(weight, int | float) else type(weight).__name__
        raise InputError(
            f"A weight in {field} must be from {-MAX_ADAPTER_WEIGHT:g} to {MAX_ADAPTER_WEIGHT:g}, "
            f"not {shown}.",
            field=field,
        )
    return float(weight) + 0.0  # -0 is 0, also in ids


def _source(source: object, field: str) -> str:
    if not isinstance(source, str) or not source.strip():
        raise InputError(f"An entry of {field} names no file.", field=field)
    if len(source) > _MAX_SOURCE or not source.isprintable():
        raise InputError(
            f"A name in {field} must be printable, of at most {_MAX_SOURCE:,} characters.",
            field=field,
        )
    return source


def _check_twice(adapters: Adapters, field: str) -> None:
    seen: set[str] = set()
    for each in adapters:
        if each.source in seen:
            raise InputError(f"{_short(each.source)} is in {field} twice.", field=field)
        seen.add(each.source)


def _short(text: str) -> str:
    shown = text[:_MAX_SHOWN].encode("unicode_escape").decode()
    return repr(shown) if len(text) <= _MAX_SHOWN else f"{shown!r}…"
