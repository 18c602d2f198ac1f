"""Hostile model folders: all refused before anything of them is loaded or run."""

import time
from pathlib import Path

import pytest

from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.errors import ModelError
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest
from tests import tiny_models
from tests.conftest import T2I
from tests.hostile_models import HOSTILE, MARK

PATIENCE = 20
"""Seconds that a folder may take; a pipe or an endless file would take for ever."""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = tiny_models.copy_postcard(tmp_path / "model")
    HOSTILE[name](folder)
    backend = LocalBackend(LocalOptions(device="cpu"))
    started = time.monotonic()
    with pytest.raises(ModelError) as refused:
        spec = backend.describe(GenerateRequest(prompt="a", model=str(folder)))
        backend.check(resolve_request(GenerateRequest(prompt="a", seed=1), spec))
    assert time.monotonic() - started < PATIENCE
    assert refused.value.exit_code == 9
    assert "\n" not in refused.value.message
    assert len(refused.value.message.replace(str(tmp_path), "")) < 300
    assert not (tmp_path / MARK).exists()


def test_there_are_as_many_as_an_attacker_tried() -> None:
    assert len(HOSTILE) >= 78


@pytest.mark.parametrize("name", ["index is a folder", "network is null", "no shape"])
def test_a_process_ends_with_9(name: str, tmp_path: Path, t2i: T2I) -> None:
    folder = tiny_models.copy_postcard(tmp_path / "model")
    HOSTILE[name if name in HOSTILE else f"header: {name}"](folder)
    done = t2i("generate", "x", "-m", folder, "-o", tmp_path / "x.png")
    assert done.returncode == 9, done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "x.png").exists()
