"""Every text-to-image class of diffusers: each promise is kept, or refused before it loads.

A sample runs always; `make full` runs all of them. What fails today is in EXPECTED_FAILURES, so
that mending it is seen.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2i_cli.models import libraries
from tests import families, family_table
from tests.family_failures import EXPECTED_FAILURES
from tests.family_promises import PROMISES, measure
from tests.family_runs import Family, lacks_package

SAMPLE = (
    "AmusedPipeline",
    "CogView3PlusPipeline",
    "DreamLitePipeline",
    "HunyuanImagePipeline",
    "PRXPixelPipeline",
)
"""Classes of the default run, quick ones: each with a call, a part or a package of its own kind."""


class _Families:
    """The class at hand, whose pictures serve all its promises; the one before it is closed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._family: Family | None = None

    def get(self, name: str) -> Family:
        if self._family is None or self._family.name != name:
            self.close()
            self._family = Family(name, families.save(name, self._root / name))
        return self._family

    def close(self) -> None:
        if self._family:
            self._family.close()
            self._family = None


@pytest.fixture(scope="module")
def at_hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Families]:
    found = _Families(tmp_path_factory.mktemp("families"))
    yield found
    found.close()


def _cells() -> Iterator[object]:
    """A parameter for each class and promise, those of a class together."""
    for name in sorted(families.builders()):
        for promise in PROMISES:
            marks = [] if name in SAMPLE else [pytest.mark.full]
            installed = promise == "package" and not lacks_package(name)
            if (reason := EXPECTED_FAILURES.get((name, promise))) and not installed:
                marks.append(pytest.mark.xfail(strict=True, reason=reason))
            yield pytest.param(name, promise, marks=marks, id=f"{name}-{promise}")


@pytest.mark.parametrize(("name", "promise"), list(_cells()))
def test_a_promise_is_kept_or_refused_by_name(at_hand: _Families, name: str, promise: str) -> None:
    if lacks_package(name) and promise != "package":
        pytest.skip(f"{families.PACKAGES[name]} is not installed.")
    with libraries.suppress_warnings():
        verdict = measure(at_hand.get(name), promise)
    assert verdict.holds, verdict.detail


def test_every_text_to_image_class_is_built_or_left_out_with_a_reason() -> None:
    with libraries.suppress_warnings():
        listed = families.text_to_image_classes()
        exported = {cls.__name__ for cls in families.exported_pipelines()}
    known = {*families.builders(), *families.LEFT_OUT}
    assert listed - known == set(), "classes that diffusers has and no test knows"
    assert known - exported == set(), "classes that diffusers has no longer"
    assert not families.builders().keys() & families.LEFT_OUT.keys()


def test_expected_failures_and_packages_name_what_is_measured() -> None:
    assert {promise for _, promise in EXPECTED_FAILURES} <= PROMISES.keys()
    assert {name for name, _ in EXPECTED_FAILURES} <= families.builders().keys()
    assert families.PACKAGES.keys() <= families.builders().keys()


def test_the_table_of_the_docs_says_what_fails() -> None:
    written = family_table.DOCS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+Pipeline\w*) \| (.*) \|$", written, re.MULTILINE)
    assert {name for name, _ in rows} == families.builders().keys()
    cells = {
        (name, promise): cell
        for name, line in rows
        for promise, cell in zip(PROMISES, line.split(" | "), strict=True)
    }
    failing = {key for key, cell in cells.items() if cell == family_table.SIGNS["broken"]}
    unmeasured = {key for key, cell in cells.items() if cell == family_table.SIGNS["unknown"]}
    assert failing == EXPECTED_FAILURES.keys() - unmeasured, (
        "`python -m tests.family_table --docs` writes it"
    )
