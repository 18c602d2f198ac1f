"""The labels of what t2i makes in the cloud, character by character."""

import hashlib
import time

import pytest

from t2i_cli.vertex.labels import Labels, decode_label, encode_label, format_time


def test_each_value_has_its_label() -> None:
    labels = Labels(name="x", expires=5, model="Qwen/Q_1", serving="t2i", by="ann@example.org")
    assert labels.encoded() == {
        "managed-by": "t2i",
        "t2i-name": "x",
        "t2i-expires": "5",
        "t2i-model": "_51wen_2f_51_5f1",
        "t2i-serving": "t2i",
        "t2i-by": "ann_40example_2eorg",
    }


@pytest.mark.parametrize("more", [{}, {"t2i-expires": "soon"}, {"t2i-expires": "-5"}])
def test_what_is_not_told_is_empty_and_long_past(more: dict[str, str]) -> None:
    assert Labels.parse({"managed-by": "t2i"} | more) == Labels(
        name="", expires=0, model="", serving="", by=""
    )


def test_only_what_is_too_long_is_cut_and_has_a_hash() -> None:
    assert encode_label("a" * 63) == "a" * 63
    digest = hashlib.sha256(b"a" * 64).hexdigest()[:8]
    assert encode_label("a" * 64) == "a" * 53 + "_x" + digest
    assert decode_label(encode_label("a" * 64)) == "a" * 53 + "…"


def test_a_time_is_told_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert format_time(1_795_690_800 + 59) == "2026-11-26 11:00 UTC"
    finally:
        monkeypatch.undo()
        time.tzset()
