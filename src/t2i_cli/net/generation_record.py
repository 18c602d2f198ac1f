"""Checks the generation info that a t2i server or worker sends with an image."""

from collections.abc import Callable, Mapping
from dataclasses import fields

from t2i_cli.files.state_files import is_count, is_unicode_text
from t2i_cli.provenance import GenerationInfo


def sound_info(record: Mapping[str, object]) -> dict[str, object]:
    """The fields of GenerationInfo that the record has, without those of another type."""
    found: dict[str, object] = {
        name: value for name, value in record.items() if name in _CHECKS and _CHECKS[name](value)
    }
    measures = found.get("measures")
    return found | ({"measures": tuple(measures)} if isinstance(measures, list) else {})


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(is_unicode_text, value))


def _is_map_of_texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_unicode_text, value.values()))


def _is_map_of_counts(value: object) -> bool:
    return (
        isinstance(value, dict)
        and all(map(is_unicode_text, value))
        and all(map(is_count, value.values()))
    )


_OTHERS: Mapping[str, Callable[[object], bool]] = {
    "batch_size": is_count,
    "threads": is_count,
    "vae_tile": is_count,
    "seed_confirmed": _is_flag,
    "measures": _is_list_of_texts,
    "libraries": _is_map_of_texts,
    "tokens": _is_map_of_counts,
}
_CHECKS: Mapping[str, Callable[[object], bool]] = {
    field.name: _OTHERS.get(field.name, is_unicode_text) for field in fields(GenerationInfo)
}
