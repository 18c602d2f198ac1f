"""What earlier runs teach about how long the next one takes."""

import json
import os
from pathlib import Path

import pytest

from t2i_cli.batch import timings
from tests.factories import request


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of this test's own, not there yet, nor its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there"))
    return tmp_path / "not" / "there" / "t2i" / "timings.json"


def test_a_new_run_counts_as_much_as_all_before_it(cache: Path) -> None:
    known = []
    for pace in (1.0, 4.0, 0.5):
        timings.record_timing("m", "cpu", pace)
        known.append(timings.lookup_timing("m", "cpu"))
    assert known == [1.0, 2.5, 1.5]
    assert timings.lookup_timing("m", "cuda:0") is None


def test_an_estimate_adds_up_steps_times_megapixels(cache: Path) -> None:
    timings.record_timing("m", "cpu", 2.0)
    small = request(model="m", steps=10, width=500, height=400)  # 2 units
    unknown = request(model="m", steps=None, width=None, height=None)  # 1 unit
    assert timings.estimate_seconds([small, small, unknown], {"m": "cpu"}) == 10.0
    assert timings.estimate_seconds([small, request(model="n")], {"m": "cpu"}) is None


def test_the_file_is_for_people_too_and_for_every_user_that_the_umask_lets(cache: Path) -> None:
    before = os.umask(0o022)
    try:
        timings.record_timing("m", "cpu", 1.0)
    finally:
        os.umask(before)
    assert cache.read_text() == '{\n "m on cpu": 1.0\n}'
    assert cache.stat().st_mode & 0o777 == 0o644


def test_a_cache_that_cannot_be_written_is_no_failure(cache: Path) -> None:
    cache.parent.parent.parent.write_text("a file")
    timings.record_timing("m", "cpu", 1.0)
    assert timings.lookup_timing("m", "cpu") is None


def test_only_amounts_of_seconds_count(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    said = {"0": 0, "-": -1, "true": True, "most": 1e9, "text": "1", "whole": 3, "part": 0.25}
    cache.write_text(json.dumps({f"{name} on cpu": value for name, value in said.items()}))
    known = {name: timings.lookup_timing(name, "cpu") for name in said}
    assert {name: pace for name, pace in known.items() if pace} == {"whole": 3.0, "part": 0.25}
