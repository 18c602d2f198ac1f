"""`t2i models` as processes, against a fake Hub."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t2i_cli import postcard
from t2i_cli.models import catalog
from t2i_cli.postcard import vocabulary
from tests.conftest import T2I, Terminal
from tests.fakes.hub import FakeHub, Repo
from tests.fakes.models import FULL, HALF, repository

NAME = "ann/picture"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture
def env(hub: FakeHub) -> dict[str, str]:
    """A way to a Hub with two models; the precision is set, as finding it takes torch."""
    hub.repos[NAME] = Repo(repository())
    hub.repos[SD15] = Repo(repository())
    return hub.environment | {"T2I_DTYPE": "float32"}


def listed(t2i: T2I, **env: str) -> dict[str, dict[str, object]]:
    lines = t2i("models", "list", "--json", env=env).stdout.splitlines()
    return {record["name"]: record for record in map(json.loads, lines)}


def test_list_shows_the_catalogue_without_a_network(t2i: T2I) -> None:
    done = t2i("models", "list")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", *catalog.MODELS]
    assert "gated" in next(line for line in lines if line.startswith("sd35-medium"))
    records = listed(t2i)
    assert records["postcard"]["downloaded"] == "whole"
    assert records["sd15"]["downloaded"] == "no"
    assert records["sd15"]["licence"] == "CreativeML Open RAIL-M"


def test_listing_loads_nothing_heavy(t2i_env: dict[str, str]) -> None:
    code = (
        "import sys; from t2i_cli.cli.commands import models; models.list_();"
        "heavy = {'torch', 'diffusers', 'transformers', 'PIL', 'google.auth'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=t2i_env, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "[]"


def test_pull_path_show_list_remove(t2i: T2I, hub: FakeHub, env: dict[str, str]) -> None:
    pulled = t2i("models", "pull", NAME, env=env)
    assert pulled.returncode == 0, pulled.stderr
    [folder] = pulled.stdout.splitlines()
    assert (Path(folder) / FULL).read_bytes() == repository()[FULL]
    assert not (Path(folder) / HALF).exists()
    assert "ann/picture takes 600.4 kB; downloading. Its licence is not told." in pulled.stderr
    assert "downloading ann/picture: 1 of 1 MB" in pulled.stderr
    hub.requests.clear()
    offline = env | {"HF_HUB_OFFLINE": "1"}
    assert t2i("models", "pull", NAME, env=offline).stdout == pulled.stdout
    assert t2i("models", "path", NAME, env=env).stdout == pulled.stdout
    shown = json.loads(t2i("models", "show", NAME, "--json", env=env).stdout)
    assert shown["folder"] == folder
    assert shown["revision"] == Repo(repository()).commit
    assert listed(t2i, **env)[NAME]["downloaded"] == "whole"
    declined = t2i("models", "remove", NAME, env=env)
    assert declined.returncode == 2
    assert "--yes" in declined.stderr
    assert Path(folder).exists()
    removed = t2i("models", "remove", NAME, "--yes", "--json", env=env)
    assert json.loads(removed.stdout)["freed_bytes"] > 600_000
    assert not Path(folder).exists()
    assert t2i("models", "path", NAME, env=env).returncode == 9
    assert hub.requests == []


def test_pull_by_alias_again_and_remove_when_asked(
    t2i: T2I, t2i_terminal: Terminal, hub: FakeHub, env: dict[str, str]
) -> None:
    cpu = {"T2I_DTYPE": "", "T2I_DEVICE": "cpu"}
    first = t2i("models", "pull", "sd15", "-q", env=env | cpu)
    assert (first.returncode, first.stderr) == (0, "")
    assert (Path(first.stdout.strip()) / FULL).exists()
    hub.requests.clear()
    again = t2i("models", "pull", "sd15", "--json", env=env)
    assert json.loads(again.stdout) == {"model": "sd15", "path": first.stdout.strip()}
    assert hub.fetched() == []
    assert listed(t2i, **env)["sd15"]["downloaded"] == "whole"
    question = f"Remove {SD15} (600."
    for answer, code, left in (("n", 2, True), ("y", 0, False)):
        done = t2i_terminal("models", "remove", "sd15", prompt="[y/N] ", answer=answer, env=env)
        assert question in done.stderr
        assert done.returncode == code
        assert Path(first.stdout.strip()).exists() == left


def test_half_precision_pulls_fp16(t2i: T2I, env: dict[str, str]) -> None:
    done = t2i("models", "pull", NAME, env=env | {"T2I_DTYPE": "float16"})
    assert (Path(done.stdout.strip()) / HALF).exists()
    assert not (Path(done.stdout.strip()) / FULL).exists()


def test_a_pull_cut_in_the_middle_is_finished_by_the_next(
    t2i: T2I, hub: FakeHub, env: dict[str, str]
) -> None:
    hub.cut = {FULL}
    broken = t2i("models", "pull", NAME, env=env)
    assert broken.returncode == 6
    assert "Run it again: the files that are finished are kept." in broken.stderr
    assert broken.stdout == ""
    assert listed(t2i, **env)[NAME]["downloaded"] == "partly"
    path = t2i("models", "path", NAME, env=env)
    assert path.returncode == 9
    hub.cut.clear()
    hub.requests.clear()
    done = t2i("models", "pull", NAME, env=env)
    assert done.returncode == 0
    assert (Path(done.stdout.strip()) / FULL).read_bytes() == repository()[FULL]
    assert len([each for each in hub.fetched() if each != "README.md"]) == 1


def test_a_gated_model_without_a_token(t2i: T2I, hub: FakeHub, env: dict[str, str]) -> None:
    hub.repos[NAME].gated = True
    done = t2i("models", "pull", NAME, env=env)
    assert done.returncode == 3
    assert "https://huggingface.co/ann/picture and run `t2i login`" in done.stderr


def test_offline_without_the_model(t2i: T2I, hub: FakeHub, env: dict[str, str]) -> None:
    missing = t2i("models", "pull", NAME, env=env | {"HF_HUB_OFFLINE": "1"})
    assert missing.returncode == 9
    assert "ann/picture is not downloaded." in missing.stderr
    assert hub.requests == []


def test_sigterm_ends_a_pull(
    t2i_env: dict[str, str], home: Path, hub: FakeHub, env: dict[str, str]
) -> None:
    hub.drip = 0.3
    process = subprocess.Popen(
        [sys.executable, "-m", "t2i_cli", "models", "pull", NAME],
        env=t2i_env | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not any(seen.path.startswith("/cdn/") for seen in hub.requests):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.terminate()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert out == ""
    assert list(home.rglob("*.incomplete")) == []


def test_a_full_disk(
    t2i_env: dict[str, str], home: Path, hub: FakeHub, env: dict[str, str]
) -> None:
    # 300 blocks of 512 or 1024 bytes: room for the configuration files, not for the weights.
    done = subprocess.run(
        ["sh", "-c", f"ulimit -f 300; exec {sys.executable} -m t2i_cli models pull {NAME}"],
        env=t2i_env | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 11, done.stderr
    assert "error: Cannot write" in done.stderr
    assert "Run it again" in done.stderr
    assert list(home.rglob("*.incomplete")) == []


@pytest.mark.parametrize("command", ["path", "pull", "show", "remove"])
def test_an_unknown_name(t2i: T2I, command: str) -> None:
    done = t2i("models", command, "nothing")
    assert done.returncode == 9
    assert "The model 'nothing' is unknown." in done.stderr
    assert "`t2i models list` shows the short names" in done.stderr


@pytest.mark.parametrize("command", ["path", "pull", "show"])
def test_a_folder_that_holds_no_model(t2i: T2I, tmp_path: Path, command: str) -> None:
    (tmp_path / "notes.txt").touch()
    done = t2i("models", command, str(tmp_path))
    assert (done.returncode, done.stdout) == (9, "")
    assert "has no model_index.json" in done.stderr


def test_a_broken_link_in_a_folder_takes_no_space(t2i: T2I, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    shown = json.loads(t2i("models", "show", str(tmp_path), "--json").stdout)
    assert shown["disk_bytes"] == 2


def test_postcard_is_here_and_stays(t2i: T2I) -> None:
    assert t2i("models", "path", "postcard").stdout == f"{postcard.FOLDER}\n"
    assert t2i("models", "pull", "postcard").stdout == f"{postcard.FOLDER}\n"
    removed = t2i("models", "remove", "postcard", "--yes")
    assert removed.returncode == 2
    assert "part of t2i" in removed.stderr
    assert postcard.FOLDER.is_dir()


def test_a_folder_of_the_users_own_stays(t2i: T2I, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    assert t2i("models", "path", "mine").stdout == f"{folder}\n"
    assert t2i("models", "remove", "mine", "--yes").returncode == 2
    assert folder.is_dir()


@pytest.mark.parametrize("command", ["path", "pull"])
def test_a_folder_has_no_revisions(t2i: T2I, tmp_path: Path, command: str) -> None:
    (tmp_path / "mine").mkdir()
    for model in ("postcard", "mine"):
        done = t2i("models", command, model, "--revision", "nonsense")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{model} is a folder, which has no revisions." in done.stderr


def test_show_postcard_prints_every_word_once(t2i: T2I) -> None:
    done = t2i("models", "show", "postcard")
    groups = vocabulary.vocabulary()
    for title, words in groups.items():
        assert f"{title}: {' '.join(words)}\n" in done.stdout
    printed = [word for words in groups.values() for word in words]
    assert sorted(printed) == sorted(postcard.words())
    assert all(groups.values())
    assert f't2i generate -m postcard "{vocabulary.EXAMPLES[0]}"' in done.stdout
    record = json.loads(t2i("models", "show", "postcard", "--json").stdout)
    assert record["words"] == groups


def test_examples_use_known_words_only() -> None:
    said = {word for example in vocabulary.EXAMPLES for word in example.replace(",", "").split()}
    assert said <= postcard.words()


def test_show_a_model_of_the_catalogue(t2i: T2I) -> None:
    done = t2i("models", "show", "flux-schnell")
    assert "licence: Apache-2.0\n" in done.stdout
    assert "gated: yes\n" in done.stdout
    assert "download bytes: 33.7 GB\n" in done.stdout
    assert "refuses" not in done.stdout
    assert "guidance off" not in done.stdout
    record = json.loads(t2i("models", "show", "flux-schnell", "--json").stdout)
    assert (record["refuses"], record["guidance_off"]) == ([], 1.0)
