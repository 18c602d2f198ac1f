"""`t2i remote build`: the command lines, with a docker and a gcloud of the test's own."""

import json
import os
import shlex
from pathlib import Path

import pytest

from t2i_cli import __version__
from t2i_cli.vertex import build
from tests.conftest import T2I

IMAGE = f"us-central1-docker.pkg.dev/gallery/t2i/t2i:{__version__}"


class Tools:
    """Programs that write down how they are called and what lies in their context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"

    def make(self, name: str, script: str = "") -> None:
        """A program of that name; `script` is the shell's."""
        path = self.folder / name
        path.write_text(
            f'#!/bin/sh\necho "{name}" "$@" >> "{self.log}"\n'
            f'for last; do :; done; [ -d "$last" ] && ls -A "$last" >> "{self.folder}/context"\n'
            f"{script}\nexit 0\n"
        )
        path.chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        """Only these programs, and what a shell script needs."""
        return {
            "PATH": f"{self.folder}{os.pathsep}/bin",
            "T2I_VERTEX_PROJECT": "gallery",
        }

    def calls(self) -> list[list[str]]:
        """How the programs were called."""
        return [shlex.split(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    folder = tmp_path / "tools"
    folder.mkdir()
    return Tools(folder)


def test_docker_builds_and_pushes(t2i: T2I, tools: Tools) -> None:
    tools.make("docker")
    done = t2i("remote", "build", "--bake", "sd15", "--with", "docker", env=tools.env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{IMAGE}\n"
    built, pushed = tools.calls()
    assert built[:6] == ["docker", "build", "--platform", "linux/amd64", "--tag", IMAGE]
    assert "T2I=/context" in built
    assert "MODEL=sd15" in built
    assert not Path(built[-1]).exists()
    assert pushed == ["docker", "push", IMAGE]
    context = (tools.folder / "context").read_text().split()
    assert sorted(context) == [
        "CHANGELOG.md",
        "Dockerfile",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "src",
    ]
    assert f"t2i config set vertex_image {IMAGE}" in done.stderr


def test_without_a_daemon_cloud_build_does_it(t2i: T2I, tools: Tools) -> None:
    tools.make("docker", 'test "$1" = version && exit 1')
    tools.make("gcloud", f'cp "$3/cloudbuild.json" "{tools.folder}/config.json"')
    done = t2i("remote", "build", "--image", "us-docker.pkg.dev/a/b/c:1", env=tools.env)
    assert done.returncode == 0, done.stderr
    asked, submitted = tools.calls()
    assert asked[:2] == ["docker", "version"]
    assert submitted[:3] == ["gcloud", "builds", "submit"]
    assert submitted[-4:] == ["--project", "gallery", "--region", "us-central1"]
    config = json.loads((tools.folder / "config.json").read_text())
    assert config["images"] == ["us-docker.pkg.dev/a/b/c:1"]
    assert "--build-arg=T2I=/context" in config["steps"][0]["args"]


def test_neither_is_there(t2i: T2I, tools: Tools) -> None:
    done = t2i("remote", "build", env=tools.env | {"PATH": str(tools.folder)})
    assert done.returncode == 2
    assert "neither a docker daemon nor gcloud" in done.stderr


def test_a_build_or_a_push_that_fails(t2i: T2I, tools: Tools) -> None:
    tools.make("docker", 'test "$1" = build && exit 5')
    done = t2i("remote", "build", "--with", "docker", env=tools.env)
    assert done.returncode == 6
    assert "`docker build` ended with exit code 5" in done.stderr
    tools.make("docker", 'test "$1" = push && exit 1')
    done = t2i("remote", "build", "--with", "docker", env=tools.env)
    assert done.returncode == 3
    assert "gcloud auth configure-docker us-central1-docker.pkg.dev" in done.stderr


def test_what_cannot_be_baked(t2i: T2I, tools: Tools) -> None:
    for model in ("flux-schnell", "/some/folder/x", "nothing"):
        done = t2i("remote", "build", "--with", "docker", "--bake", model, env=tools.env)
        assert done.returncode == 2
        assert not tools.log.exists()


def test_the_image_runs_as_nobody_in_particular_and_serves() -> None:
    lines = build.DOCKERFILE.read_text().splitlines()
    last_user = [line for line in lines if line.startswith("USER ")][-1]
    assert last_user == "USER t2i"
    assert lines[-1] == 'ENTRYPOINT ["t2i", "serve"]'
    assert lines.index(last_user) < lines.index(lines[-1])
    assert 'ARG MODEL=""' in lines
