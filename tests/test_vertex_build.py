"""`t2i remote build`: the command lines, with a docker and a gcloud of the test's own."""

import importlib.metadata
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from t2i_cli import __version__
from t2i_cli.vertex import build, cuda_builds, pinned_packages
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
    assert "CUDA=cu126" in built
    assert not Path(built[-1]).exists()
    assert pushed == ["docker", "push", IMAGE]
    context = (tools.folder / "context").read_text().split()
    assert sorted(context) == [
        "CHANGELOG.md",
        "Dockerfile",
        "LICENSE",
        "README.md",
        "constraints.txt",
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
    assert {"--build-arg=T2I=/context", "--build-arg=CUDA=cu126"} <= {*config["steps"][0]["args"]}


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


def test_another_cuda_and_another_base(t2i: T2I, tools: Tools) -> None:
    """What `deploy` must know of the image, the driver that it needs, its name says."""
    copied = f'[ -d "$last" ] && cp "$last/constraints.txt" "{tools.folder}/constraints"'
    tools.make("docker", copied)
    base = f"python:3.13.1-slim@sha256:{'a' * 64}"
    given = ("--cuda", "cu130", "--base-image", base, "--with", "docker")
    done = t2i("remote", "build", *given, env=tools.env)
    assert done.stdout == f"{IMAGE}-cu130\n", done.stderr
    built, pushed = tools.calls()
    assert {"CUDA=cu130", f"BASE={base}"} <= set(built)
    assert cuda_builds.least_driver(pushed[-1]) == "580.65.06"
    constraints = (tools.folder / "constraints").read_text().splitlines()
    torch = importlib.metadata.version("torch").partition("+")[0]
    assert f"torch=={torch}+cu130" in constraints
    assert f"diffusers=={importlib.metadata.version('diffusers')}" in constraints


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--cuda", "cu127"), "--cuda must be cu126, cu129, cu130, not cu127"),
        (("--cuda", "12.6"), "--cuda must be"),
        (("--base-image", "python:3.13-slim"), "has no digest"),
        (("--base-image", "@sha256:" + "a" * 64), "has no digest"),
    ],
)
def test_what_cannot_be_built_on(t2i: T2I, tools: Tools, given: tuple[str, ...], says: str) -> None:
    tools.make("docker")
    done = t2i("remote", "build", "--with", "docker", *given, env=tools.env)
    assert (done.returncode, says in done.stderr) == (2, True)
    assert not tools.log.exists()


@pytest.mark.parametrize(
    ("image", "driver", "newer"),
    [
        ("r-docker.pkg.dev/p/t2i/t2i:1.2.0", "525.60.13", False),
        ("r-docker.pkg.dev/p/t2i/t2i:1.2.0-cu129", "525.60.13", False),
        ("r-docker.pkg.dev/p/t2i/t2i:1.2.0-cu130", "580.65.06", True),
        ("r-docker.pkg.dev/p/t2i/my-cu130", "525.60.13", False),
        ("r-docker.pkg.dev/p/t2i/t2i:1-cu999", "525.60.13", False),
    ],
)
def test_the_driver_that_an_image_needs(image: str, driver: str, newer: bool) -> None:
    assert cuda_builds.least_driver(image) == driver
    assert cuda_builds.needs_newer_driver(image) == newer


def test_constraints_are_of_what_runs_here() -> None:
    """All that t2i requires, extras aside, in versions that an index has."""
    text = pinned_packages.package_constraints("t2i-cli", cuda_build="cu126")
    pins = dict(line.split("==") for line in text.splitlines())
    required = importlib.metadata.requires("t2i-cli") or []
    direct = [canonicalize_name(Requirement(r).name) for r in required if "extra ==" not in r]
    assert set(direct) <= pins.keys()
    assert {"tokenizers", "numpy", "starlette"} <= pins.keys()  # what those require
    assert not {"t2i-cli", "pytest", "mypy", "ruff"} & pins.keys()
    for name, version in pins.items():
        installed = Version(importlib.metadata.version(name))
        assert Version(version).public == installed.public
        assert Version(version).local == ("cu126" if name == "torch" else None)


def stages() -> list[list[str]]:
    """The Dockerfile's instructions, joined, of what precedes the stages and of each stage."""
    text = re.sub(r"(?m)^#.*\n", "", build.DOCKERFILE.read_text()).replace("\\\n", " ")
    found: list[list[str]] = [[]]
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("FROM "):
            found.append([])
        found[-1].append(" ".join(line.split()))
    return found


def test_the_image_keeps_nothing_of_the_context() -> None:
    arguments, packages, image = stages()
    assert re.fullmatch(r"ARG BASE=python:3\.\d+\.\d+-[\w-]+@sha256:[0-9a-f]{64}", arguments[0])
    assert packages[0] == "FROM ${BASE} AS packages"
    assert "COPY . /context" in packages
    (install,) = (line for line in packages if "pip install" in line)
    assert "--constraint /context/constraints.txt" in install
    assert 'https://download.pytorch.org/whl/${CUDA}"' in install
    assert image[0] == "FROM ${BASE}"
    copies = [line for line in image if re.match("(COPY|ADD) ", line)]
    assert copies == ["COPY --from=packages /opt/t2i /opt/t2i"]
    assert not any("/context" in line for line in image)
    (label,) = (line for line in image if line.startswith("LABEL "))
    assert 'org.opencontainers.image.base.name="${BASE}"' in label
    assert 't2i.cuda="${CUDA}"' in label


def test_the_image_runs_as_nobody_in_particular_and_serves() -> None:
    lines = build.DOCKERFILE.read_text().splitlines()
    last_user = [line for line in lines if line.startswith("USER ")][-1]
    assert last_user == "USER t2i"
    assert lines[-1] == 'ENTRYPOINT ["t2i", "serve"]'
    assert lines.index(last_user) < lines.index(lines[-1])
    assert 'ARG MODEL=""' in lines
