"""The shell completes values, by its script's protocol: fast, and without an error."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from t2i_cli.models import downloaded
from t2i_cli.request_fields import DIALECTS, SERVINGS
from t2i_cli.settings.schema import BACKENDS, DTYPES, SETTINGS
from tests.conftest import T2I

ENDPOINT = "projects/p/locations/us-central1/endpoints/4711"


def _completed(t2i: T2I, line: str, **variables: str) -> list[str]:
    """What bash is offered at the end of a command line."""
    words = len(shlex.split(line)) - (not line.endswith(" "))
    env = {"_T2I_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(words)}
    done = t2i(env=env | variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.fixture
def cached(home: Path) -> Path:
    """A cache with a model of the catalogue, another one, and a data set."""
    for name in (
        "models--stable-diffusion-v1-5--stable-diffusion-v1-5",
        "models--some--tiny--model",
        "datasets--some--pictures",
    ):
        snapshot = home / "hf/hub" / name / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "model_index.json").write_text("{}")
    (home / "hf/hub/models--some--language/snapshots/b").mkdir(parents=True)
    return home / "hf/hub"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("t2i generate x --dtype ", set(DTYPES)),
        ("t2i generate x --memory l", {"low"}),
        ("t2i generate x --format=", {"png", "jpeg", "webp"}),
        ("t2i batch p.txt --input-format js", {"jsonl", "json"}),
        ("t2i batch p.txt --vary st", {"steps=", "step_cache=", "style="}),
        ("t2i generate x --backend ", set(BACKENDS)),
        ("t2i generate x --device c", {"cuda", "cpu"}),
        ("t2i generate x --dialect ", set(DIALECTS)),
        ("t2i remote deploy --serving ", set(SERVINGS)),
        ("t2i config get ", set(SETTINGS)),
        ("t2i config set memory ", {"auto", "fast", "low"}),
        ("t2i config set model post", {"postcard"}),
        ("t2i help models pu", {"pull"}),
    ],
)
def test_values_are_completed(t2i: T2I, line: str, offered: set[str]) -> None:
    assert set(_completed(t2i, line)) == offered


def test_schedulers_are_completed(t2i: T2I) -> None:
    assert set(_completed(t2i, "t2i generate x --scheduler euler")) == {
        *("euler", "euler-karras", "euler-a", "euler-trailing")
    }


@pytest.mark.usefixtures("cached")
def test_models_of_the_catalogue_and_the_cache_are_completed(t2i: T2I) -> None:
    offered = _completed(t2i, "t2i serve -m ")
    assert {"postcard", "sdxl", "sd15", "some/tiny--model"} <= set(offered)
    assert len(offered) == len(set(offered))
    assert not [name for name in offered if "language" in name or "pictures" in name]
    assert set(_completed(t2i, "t2i models remove ")) == {"sd15", "some/tiny--model"}


def test_endpoints_that_are_kept_here_are_completed(t2i: T2I, home: Path) -> None:
    store = home / ".local/state/t2i/vertex.json"
    store.parent.mkdir(parents=True)
    store.write_text(json.dumps({"current": None, "endpoints": [{"name": ENDPOINT}]}))
    assert _completed(t2i, "t2i remote use ") == ["4711"]
    assert _completed(t2i, "t2i generate x --endpoint ") == ["4711"]


def test_nothing_of_this_machine_makes_completion_fail(t2i: T2I, home: Path) -> None:
    (home / "t2i.toml").write_text("no = [toml")
    file = home / "file"
    file.write_text("")
    broken = {"HF_HUB_DOWNLOAD_TIMEOUT": "soon", "HF_HOME": str(file), "T2I_MODEL": "nosuch"}
    assert "sdxl" in _completed(t2i, "t2i generate x -m s", **broken)


@pytest.mark.usefixtures("cached")
def test_completion_loads_nothing_heavy(t2i_env: dict[str, str]) -> None:
    script = (
        "import sys\n"
        "from t2i_cli.cli.main import _run\n"
        "try:\n"
        "    _run([])\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'PIL', 'google.auth', 'httpx2', 'rich'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    env = {"_T2I_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "t2i models show s"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=t2i_env | env, capture_output=True, text=True
    )
    assert "sd15" in done.stdout
    assert done.stderr == "[]\n"


def test_the_cache_is_the_one_that_downloads_use(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cached))
    from t2i_cli.hub import cache

    assert downloaded.downloaded_repositories() == [
        "some/tiny--model",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ]
    assert cache.cache_folder() == cached
    assert not downloaded.has_weights("some/tiny--model")
    weights = next(cached.glob("models--some--tiny--model/snapshots/*")) / "unet"
    weights.mkdir()
    (weights / "model.safetensors").write_text("")
    assert downloaded.has_weights("some/tiny--model")
