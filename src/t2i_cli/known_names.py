"""What to say of a name that is not known: the nearest known one, and which there are."""

from collections.abc import Iterable

_MAX_NAME = 100
"""Characters; comparing takes quadratic time, and no known name is as long."""


def closest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that is nearest to a misspelt one, in any case; `None` if none is near."""
    from difflib import get_close_matches

    by_spelling = {each.casefold(): each for each in known}
    near = get_close_matches(name[:_MAX_NAME].casefold(), by_spelling, n=1)
    return by_spelling[near[0]] if near else None


def suggest_name(name: str, known: Iterable[str]) -> str:
    """`Did you mean X? ` as the beginning of a hint; empty if no known name is near."""
    near = closest_name(name, known)
    return "" if near is None else f"Did you mean {near}? "


def name_choices(name: str, known: Iterable[str], lead: str = "use one of:") -> str:
    """The end of a sentence that refuses a name: the one that was meant, or those there are."""
    names = list(known)
    if near := closest_name(name, names):
        return f"did you mean {near}?"
    return f"{lead} {', '.join(names)}." if names else "there is none."
