"""Durations as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i_cli import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172_800), ("0", 0), ("0s", 0)],
)
def test_what_is_taken(text: str, seconds: int) -> None:
    assert durations.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "1.5h", "-1m", "10 m", "30m1h", "1m\n", "٣m"])
def test_what_is_not(text: str) -> None:
    assert durations.parse_duration(text) is None


@given(st.integers(0, 10**9))
def test_what_is_spoken_is_read_again(seconds: int) -> None:
    assert durations.parse_duration(durations.format_duration(seconds)) == seconds
