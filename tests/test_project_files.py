"""What surrounds the program holds together: CI, hooks, templates, links of docs, the version."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from t2i_cli import __version__

yaml = pytest.importorskip("yaml")  # transformers brings it

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
HOOKS = ROOT / ".pre-commit-config.yaml"
DEPENDABOT = ROOT / ".github" / "dependabot.yml"
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "training/*.md")
    for page in ROOT.glob(pattern)
)
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def read(path: Path) -> dict[Any, Any]:
    """A YAML file; the key `on` reads as True."""
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """Every step of a workflow."""
    for job in read(path)["jobs"].values():
        assert job["timeout-minutes"] <= 60
        yield from job["steps"]


def links(page: Path) -> list[str]:
    """Where a page leads, code blocks aside."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_use_actions_of_one_version_and_read_only(path: Path) -> None:
    assert read(path)["permissions"] == {"contents": "read"}
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", name)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_is_there(path: Path) -> None:
    commands = "\n".join(step["run"] for step in steps(path) if "run" in step)
    named = re.findall(r"(?:tests|docs|examples|\.ci)/[\w./-]*\w", commands)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_ci_tests_every_python_that_the_package_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    jobs = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    assert jobs["linux"]["strategy"]["matrix"]["python"] == PYTHONS
    assert project["requires-python"] == f">={PYTHONS[0]}"


def test_the_hooks_run_what_ci_runs() -> None:
    (local,) = read(HOOKS)["repos"]
    entries = {hook["id"]: hook["entry"] for hook in local["hooks"]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for entry in ("ruff check", "ruff format", "docs/generate.py --check", "-m mypy"):
        assert any(entry in command for command in entries.values())
        assert entry in makefile


def test_reports_ask_for_what_a_maintainer_needs() -> None:
    assert {path.name for path in TEMPLATES} == {"bug.yml", "config.yml", "feature.yml"}
    labels = [
        field["attributes"]["label"]
        for field in read(TEMPLATES[0])["body"]
        if field.get("validations", {}).get("required")
    ]
    assert any("t2i doctor --json" in label for label in labels)
    ecosystems = {update["package-ecosystem"] for update in read(DEPENDABOT)["updates"]}
    assert ecosystems == {"pip", "github-actions"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []


def test_every_page_can_be_reached_from_the_readme_or_contributing() -> None:
    reached, waiting = set(), [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        targets = (link.partition("#")[0] for link in links(page) if ":" not in link)
        waiting += [page.parent / target for target in targets if target]
    assert [page for page in PAGES if page.parent != ROOT and page not in reached] == []


def test_the_version_stands_in_one_place() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.toml", "*.yml", "*.ipynb", "*.js", "*.html"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    if not tracked:
        pytest.skip("There is no git repository here.")
    history = {"CHANGELOG.md"}
    repeated = [
        name
        for name in tracked
        if name not in history
        and (ROOT / name).exists()
        and re.search(
            rf"(?<![\d.]){re.escape(__version__)}(?![\d.])", (ROOT / name).read_text("utf-8")
        )
    ]
    assert repeated == ["src/t2i_cli/__init__.py"]
