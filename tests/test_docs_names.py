"""The pages on how t2i is built name files and functions that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "t2i_cli"
FOLDERS = ("src", "tests", "docs", "benchmarks", "examples", "training")
PAGES = [
    ROOT / "docs" / "architecture.md",
    ROOT / "docs" / "adding.md",
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
]
BELOW = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*")}
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
OTHERS = {"click.ClickException"}
"""Names of other programs."""


def quoted(page: Path) -> list[str]:
    """What stands in single backticks, code blocks aside."""
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def is_there(name: str) -> bool:
    """Whether a path below the project, below the package or beside another one exists."""
    if "NAME" in name or "*" in name:
        return True
    if "/" in name.rstrip("/"):
        return (ROOT / name).exists() or (SOURCE / name).exists()
    return name.rstrip("/") in BELOW or (ROOT / name).is_dir()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    named = [name for name in quoted(page) if re.fullmatch(r"[\w*./-]+(\.py|/)", name)]
    assert [name for name in named if not is_there(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_function_class_and_constant_that_is_named_is_there(page: Path) -> None:
    form = r"([\w.]+)\([\w, ]*\)|((?:[A-Z][a-z0-9]+){2,})|(_?[A-Z][A-Z0-9]*_[A-Z_]+)"
    named = [match for name in quoted(page) if (match := re.fullmatch(form, name))]
    names = {match[1] or match[2] or match[3] for match in named} - OTHERS
    words = set(re.findall(r"\w+", TEXT))
    assert sorted(name for name in names if name.split(".")[-1] not in words) == []
