"""The examples, run as a reader runs them: the notebook's code cells and the script for CI."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Starter
from tests.fakes.hub import FakeHub
from tests.fakes.vertex import FakeVertex, counted

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOK = json.loads((EXAMPLES / "article.ipynb").read_text(encoding="utf-8"))


def source(kind: str) -> list[str]:
    """The cells of one kind, in their order."""
    cells = NOTEBOOK["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def notebook(folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the code cells one after another, as a notebook does, in one Python process."""
    file = folder / "notebook.py"
    file.write_text("\n\n".join(source("code")), encoding="utf-8")
    return subprocess.run(
        [sys.executable, file],
        cwd=folder,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def on_path(
    t2i_env: dict[str, str], tmp_path: Path, t2i_starter: Starter
) -> Iterator[dict[str, str]]:
    """An environment in which `t2i` is the one under test."""
    command = tmp_path / "bin" / "t2i"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.join(t2i_starter.command(t2i_env))} "$@"\n')
    command.chmod(0o755)
    yield t2i_env | {"PATH": f"{command.parent}{os.pathsep}{t2i_env['PATH']}"}


def test_the_notebook_makes_every_image_and_leaves_nothing_in_the_cloud(
    t2i_env: dict[str, str], hub: FakeHub, vertex: FakeVertex, tmp_path: Path
) -> None:
    hub.users["hf_good"] = "ann"
    env = t2i_env | hub.environment | vertex.environment
    done = notebook(tmp_path, env | {"HUB_TOKEN": "hf_good", "DEPLOY": "yes"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ann, by the token" in done.stdout
    assert "hf_good" not in done.stdout
    assert "t2i serve left with 0" in done.stdout
    images = {path.name for path in (tmp_path / "images").iterdir()}
    assert images == {"house.png", "remote.png", "star.jpg", "moon.png"}
    for name in ("house.png", "star.jpg", "moon.png"):
        with Image.open(tmp_path / "images" / name) as image:
            assert image.size == (128, 128)
    # One deployment, one prediction, and all of it removed.
    assert len(vertex.spans) == len(vertex.predictions) == 1
    assert vertex.left() == {}


def test_without_leave_the_notebook_s_vertex_part_stops_at_the_plan(
    t2i_env: dict[str, str], vertex: FakeVertex, tmp_path: Path
) -> None:
    code = "\n\n".join(source("code"))
    start = code.index("LOGGED_IN = ")
    # Its other parts take a model, and the test above runs them.
    part = code[: code.index("if token := ")] + code[start : code.index('print("$ t2i serve')]
    (tmp_path / "part.py").write_text(part, encoding="utf-8")
    for env, said in (
        (t2i_env | vertex.environment, "USD per hour"),
        (t2i_env, "There are no Google credentials."),
    ):
        done = subprocess.run(
            [sys.executable, tmp_path / "part.py"],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout
    assert vertex.left() == {}
    assert not vertex.spans
    assert {"POST endpoints", "POST deployModel", "POST predict"}.isdisjoint(counted(vertex))


def test_the_notebook_is_a_clean_notebook() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    # Each code cell calls t2i, its server or its address.
    assert all("t2i" in text for text in source("code"))
    headings = re.findall(r"^## (\d)\.", "\n".join(source("markdown")), re.MULTILINE)
    assert headings == ["1", "2", "3"]


def test_the_script_for_ci(on_path: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", EXAMPLES / "ci.sh", "made"],
        cwd=tmp_path,
        env=on_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = tmp_path / "made"
    with Image.open(made / "circle.png") as image:
        assert image.size == (128, 128)
    request = json.loads((made / "circle.json").read_text())["request"]
    assert (request["prompt"], request["seed"]) == ("a red circle on a white background", 1)
    first, second = (json.loads((made / f"{run}.json").read_text()) for run in ("first", "second"))
    assert (first["images"], first["made"]) == (3, 3)
    assert (second["images"], second["made"], second["done"]) == (3, 0, 3)
    assert len(list((made / "batch").glob("*.png"))) == 3
    assert "2: mend the prompt or the options" in done.stdout
    assert "9: there is no such model here" in done.stdout
