"""Says of a table of prices that it is more than a year old, by the date that it gives."""

import calendar
import re
import time

_MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_abbr) if name}
_NAMED = re.compile(r"\b([a-z]{3})[a-z]*\.? (?:\d{1,2}, )?(\d{4})\b", re.IGNORECASE)
_NUMBERED = re.compile(r"\b(\d{4})-(\d{2})\b")
_YEAR = re.compile(r"\b(2\d{3})\b")


def with_age(date: str) -> str:
    """The date of a table, and that it is more than a year old if it is.

    A date is a month by name and a year, ISO 8601, or a year alone; of another nothing is said.
    """
    found = _months(date)
    now = time.gmtime()
    if found is None or now.tm_year * 12 + now.tm_mon - found <= 12:
        return date
    return f"{date}; more than a year old"


def _months(date: str) -> int | None:
    """The months from year 0 to the first date in a text; a year alone counts to its end."""
    for month, year in _NAMED.findall(date):
        if number := _MONTHS.get(month.lower()):
            return int(year) * 12 + number
    for year, month in _NUMBERED.findall(date):
        if 1 <= int(month) <= 12:
            return int(year) * 12 + int(month)
    if year := _YEAR.search(date):
        return int(year[1]) * 12 + 12
    return None
