"""What earlier runs teach about how long the next one takes."""

from pathlib import Path

import pytest

from t2i_cli.batch import timings
from tests.made import request


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_new_run_counts_as_much_as_all_before_it() -> None:
    known = []
    for pace in (1.0, 4.0, 0.5):
        timings.record_timing("m", "cpu", pace)
        known.append(timings.lookup_timing("m", "cpu"))
    assert known == [1.0, 2.5, 1.5]
    assert timings.lookup_timing("m", "cuda:0") is None


def test_an_estimate_adds_up_steps_times_megapixels() -> None:
    timings.record_timing("m", "cpu", 2.0)
    small = request(model="m", steps=10, width=500, height=400)  # 2 units
    unknown = request(model="m", steps=None, width=None, height=None)  # 1 unit
    assert timings.estimate_seconds([small, small, unknown], {"m": "cpu"}) == 10.0
    assert timings.estimate_seconds([small, request(model="n")], {"m": "cpu"}) is None
