"""Parses and formats durations: `90s`, `10m`, `1h30m`, `2d`; `0` needs no unit."""

import re

_FORM = re.compile(r"(?=\d)(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", re.ASCII)
_UNITS = (86_400, 3_600, 60, 1)


def parse_duration(text: str) -> int | None:
    """The duration in seconds, or None if the text is invalid; units are required except for 0."""
    match = _FORM.fullmatch("0s" if text == "0" else text)
    if match is None:
        return None
    return sum(int(number or 0) * unit for number, unit in zip(match.groups(), _UNITS, strict=True))


def format_duration(seconds: float) -> str:
    """Format a duration, rounded to seconds, as `parse_duration` reads it."""
    left, parts = round(seconds), []
    for letter, unit in zip("dhms", _UNITS, strict=True):
        count, left = divmod(left, unit)
        parts.append(f"{count}{letter}" if count else "")
    return "".join(parts) or "0s"


def format_estimate(seconds: float) -> str:
    """Format a number of seconds for people, roughly."""
    if seconds < 90:
        return f"{seconds:.1f} s" if 0.05 <= seconds < 0.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
