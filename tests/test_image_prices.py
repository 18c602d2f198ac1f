"""Tables of what one image costs: t2i's own, and a user's file over it."""

import time
from pathlib import Path

import pytest

from t2i_cli import price_dates
from t2i_cli.errors import InputError
from t2i_cli.models import image_prices
from t2i_cli.models.image_prices import find_image_price
from t2i_cli.settings.schema import SETTINGS
from t2i_cli.vertex import machine_types

GEMINI = "gemini-3-pro-image"


def test_the_built_in_prices_are_amounts_that_no_one_is_sure_of() -> None:
    for backend in ("gemini", "hf"):
        table = image_prices.built_in_table(backend)
        assert "2026" in table.source
        assert "third-party or derived" in table.source
        for prices in table.images.values():
            each = prices.values() if not isinstance(prices, float) else [prices]
            assert all(0 < price < 1 for price in each)


def test_a_price_depends_on_the_class_of_sizes() -> None:
    small = find_image_price("gemini", GEMINI, size_class="1K")
    assert small.usd == 0.134
    assert small.source.startswith("table: November 2026")
    large = find_image_price("gemini", GEMINI, size_class="4K")
    assert large.usd == 0.24


@pytest.mark.parametrize(
    ("model", "size_class"), [(GEMINI, None), (GEMINI, "8K"), ("gemini-9-image", "1K")]
)
def test_a_price_that_no_table_has_is_unknown_and_never_0(
    model: str, size_class: str | None
) -> None:
    price = find_image_price("gemini", model, size_class=size_class)
    assert price.usd is None
    assert price.source.startswith("not in the table: November 2026")


def test_a_users_table_stands_over_the_built_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "images.toml"
    file.write_text(
        'date = "May 2027"\n[images]\n"gemini-9-image" = 0.5\n'
        f'"{GEMINI}" = {{ "1K" = 0.2 }}\n'
        '"owner/model" = 0.02\n"fal-ai/owner/model" = 0.03\n"free" = 0\n'
    )
    monkeypatch.setenv("T2I_IMAGE_PRICES", str(file))
    source = f"table: May 2027, {file}"
    found = find_image_price("gemini", "gemini-9-image", size_class="4K")
    assert (found.usd, found.source) == (0.5, source)
    assert find_image_price("gemini", GEMINI, size_class="1K").usd == 0.2
    assert find_image_price("gemini", GEMINI, size_class="4K").usd == 0.24
    assert find_image_price("hf", "owner/model").usd == 0.02
    assert find_image_price("hf", "owner/model", provider="together").usd == 0.02
    assert find_image_price("hf", "owner/model", provider="fal-ai").usd == 0.03
    assert find_image_price("hf", "free").usd == 0
    unknown = find_image_price("hf", "other/model")
    assert (unknown.usd, unknown.source) == (None, f"not in the {source}")


@pytest.mark.parametrize(
    ("date", "old"),
    [
        ("November 2026", False),
        ("December 2026, third-party", False),
        ("October 2026, us-central1", True),
        ("Oct 31, 2026", True),
        ("2026-10-31", True),
        ("2026-11-01", False),
        ("2026", False),
        ("2025", True),
        ("May 2027", False),
        ("no date", False),
        ("machine 9999-99", False),
        ("", False),
    ],
)
def test_prices_of_more_than_a_year_ago_are_told(
    date: str, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.struct_time((2027, 11, 15, 12, 0, 0, 0, 1, 0))
    monkeypatch.setattr("time.gmtime", lambda: now)
    assert price_dates.with_age(date) == date + "; more than a year old" * old


def test_each_table_says_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "old.toml"
    file.write_text('date = "May 2020"\n[images]\nold = 0.5\n[machines]\nold = 0.5\n')
    monkeypatch.setenv("T2I_IMAGE_PRICES", str(file))
    assert find_image_price("gemini", "old").source.startswith("table: May 2020; more than a year")
    assert machine_types.read_prices(str(file)).date.startswith("May 2020; more than a year old")
    later = time.struct_time((2031, 1, 1, 0, 0, 0, 0, 1, 0))
    monkeypatch.setattr("time.gmtime", lambda: later)
    monkeypatch.setattr(image_prices, "built_in_table", image_prices.built_in_table.__wrapped__)
    assert "November 2026; more than a year old" in image_prices.built_in_table("gemini").source
    assert "more than a year old" in machine_types.built_in_prices().date


@pytest.mark.parametrize("section", ["machines", "accelerators", "spot", "flex-start"])
def test_the_setting_names_each_section_that_is_read(section: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(f"[{section}]\na = 'dear'\n")
    with pytest.raises(InputError, match=rf"\[{section}\]"):
        machine_types.read_prices(str(file))
    assert f"[{section}]" in SETTINGS["vertex_prices"].takes


@pytest.mark.parametrize(
    "content",
    [
        "[images]\na = -1\n",
        "[images]\na = true\n",
        "[images]\na = inf\n",
        "[images]\na = { b = nan }\n",
        "[images]\na = { b = { c = 1 } }\n",
        "images = 4\n",
        "a =\n",
    ],
)
def test_a_table_with_another_content_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(content)
    monkeypatch.setenv("T2I_IMAGE_PRICES", str(file))
    with pytest.raises(InputError, match=r"bad\.toml"):
        find_image_price("gemini", GEMINI, size_class="1K")
