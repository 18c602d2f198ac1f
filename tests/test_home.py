"""Without a home directory, without an entry in passwd, with a home that nothing can be kept in."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from t2i_cli import postcard
from tests.fakes.hub import FakeHub, Repo

NOBODY = ("unshare", "--user", "--map-user=12345", "--map-group=12345")
"""Runs a command as a user whom passwd does not know, without any privilege."""
HOMES = (None, "", "relative", "/dev/null", "read-only", "locked")
ACCESS = {"read-only": 0o555, "locked": 0o000}
AsNobody = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def as_nobody(t2i_env: dict[str, str], tmp_path: Path) -> AsNobody:
    """Runs t2i in a writable folder as that user; `directory` is one of HOMES."""
    if sys.platform != "linux" or subprocess.run([*NOBODY, "true"], check=False).returncode:
        pytest.skip("No user namespaces here: `unshare --user true` fails.")
    work = tmp_path / "work"
    work.mkdir()
    for name, mode in ACCESS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)

    def run(
        *args: str, directory: str | None, input: str = "", **env: str
    ) -> subprocess.CompletedProcess[str]:
        steering = ("XDG_", "HF_HOME", "HOME", "USERPROFILE", "T2I_CONFIG")
        kept = {k: v for k, v in t2i_env.items() if not k.startswith(steering)}
        if directory is not None:
            kept["HOME"] = str(tmp_path / directory) if directory in ACCESS else directory
        done = subprocess.run(
            [*NOBODY, sys.executable, "-m", "t2i_cli", *args],
            env=kept | env,
            cwd=work,
            input=input,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        # Nothing may appear where the shell would not have looked for it.
        assert not {"~", ".cache", ".config", "relative"} & set(os.listdir(work))
        return done

    return run


@pytest.mark.parametrize("directory", HOMES)
def test_settings_are_left_out_or_a_sentence(as_nobody: AsNobody, directory: str | None) -> None:
    listed = as_nobody("config", "list", directory=directory)
    done = as_nobody("config", "set", "model", "postcard", directory=directory)
    assert done.returncode == 11
    assert done.stderr.startswith("error: ")
    named = as_nobody(
        "config", "set", "model", "postcard", directory=directory, T2I_CONFIG="t2i.toml"
    )
    assert named.returncode == 0, named.stderr
    if directory == "locked":  # there may be settings in it
        assert listed.returncode == 11
        assert "Permission denied" in listed.stderr
    else:
        assert listed.returncode == 0
        assert "model is not set" in listed.stdout


def test_pictures_are_made(as_nobody: AsNobody, tmp_path: Path) -> None:
    (tmp_path / "work/p.txt").write_text("a red star\n")
    done = as_nobody("batch", "p.txt", "-m", "postcard", "-o", "images", directory=None)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "work/images").glob("*.png"))) == 1


@pytest.mark.parametrize("directory", HOMES)
def test_a_model_of_the_hub_is_not_the_network_s_fault(
    as_nobody: AsNobody, hub: FakeHub, directory: str | None
) -> None:
    hub.repos["ann/postcard"] = Repo.from_folder(postcard.FOLDER)
    env = hub.environment | {"T2I_DTYPE": "float32", "T2I_CONFIG": "t2i.toml"}
    done = as_nobody("models", "pull", "ann/postcard", directory=directory, **env)
    assert done.returncode in ({2} if directory == "relative" else {11}), done.stderr
    assert "network" not in done.stderr
    assert any(name in done.stderr for name in ("HF_HOME", "variable HOME", "HF_TOKEN_PATH"))
    if directory is None:
        done = as_nobody("models", "pull", "ann/postcard", directory=None, HF_HOME="hf", **env)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("directory", [None, "/dev/null", "read-only"])
def test_other_commands(as_nobody: AsNobody, directory: str | None) -> None:
    assert as_nobody("models", "list", directory=directory).returncode == 0
    assert as_nobody("worker", "status", directory=directory).returncode == 0
    assert as_nobody("logout", directory=directory).returncode == 0


def test_doctor(as_nobody: AsNobody) -> None:
    done = as_nobody("doctor", "--json", directory=None)
    assert done.returncode == 0, done.stdout
    found = {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert found["postcard"]["status"] == "ok"
    assert found["config"]["detail"] == "nothing set; You have no home directory."
    assert "HF_HOME" in found["model"]["fix"]
