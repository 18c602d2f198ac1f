"""`t2i config` as a process."""

import json
import stat
from pathlib import Path

import pytest

from t2i_cli.settings.store import SETTINGS
from tests.conftest import T2I


def test_set_get_list_unset(t2i: T2I, home: Path) -> None:
    file = home / "t2i.toml"
    assert t2i("config", "path").stdout == f"{file}\n"
    done = t2i("config", "set", "model", "postcard")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"model is postcard in {file}.\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert t2i("config", "get", "model").stdout == "postcard\n"
    listed = t2i("config", "list").stdout.splitlines()
    assert listed[0] == f"model = postcard  ({file})"
    assert "device is not set" in listed[1:]
    assert t2i("config", "unset", "model", "-q").stderr == ""
    unset = t2i("config", "get", "model")
    assert (unset.returncode, unset.stdout, unset.stderr) == (0, "", "model is not set.\n")


def test_json(t2i: T2I, home: Path) -> None:
    env = {"T2I_FORMAT": "webp"}
    records = [
        json.loads(line)
        for line in t2i("config", "list", "--json", env=env).stdout.split("\n")[:-1]
    ]
    assert [record["key"] for record in records] == list(SETTINGS)
    by_key = {record["key"]: record for record in records}
    assert by_key["format"] | {"takes": ""} == {
        "key": "format",
        "value": "webp",
        "source": "T2I_FORMAT",
        "variable": "T2I_FORMAT",
        "takes": "",
    }
    assert json.loads(t2i("config", "get", "format", "--json", env=env).stdout) == by_key["format"]
    assert json.loads(t2i("config", "path", "--json").stdout) == {
        "path": str(home / "t2i.toml"),
        "exists": False,
    }


def test_the_environment_wins_and_is_said_to(t2i: T2I) -> None:
    done = t2i("config", "set", "model", "sdxl", env={"T2I_MODEL": "postcard"})
    assert "warning: T2I_MODEL is set and wins over the file." in done.stderr
    assert t2i("config", "get", "model", env={"T2I_MODEL": "postcard"}).stdout == "postcard\n"
    assert t2i("config", "get", "model").stdout == "sdxl\n"


def test_wrong_keys_and_values_exit_2(t2i: T2I, home: Path) -> None:
    unknown = t2i("config", "set", "modle", "x")
    assert unknown.returncode == 2
    assert f"There are {', '.join(SETTINGS)}." in unknown.stderr
    bad = t2i("config", "set", "memory", "big", "--json")
    assert bad.returncode == 2
    error = json.loads(bad.stderr)["error"]
    assert error["message"] == "memory must be auto, fast or low, not 'big'."
    token = t2i("config", "set", "hf_token", "hf_verysecret")
    assert token.returncode == 2
    assert "t2i login" in token.stderr
    assert "verysecret" not in token.stderr
    assert not (home / "t2i.toml").exists()


def test_a_wrong_file_is_refused_by_every_command_that_reads_it(t2i: T2I, home: Path) -> None:
    (home / "t2i.toml").write_text('modell = "sd15"\n')
    listed = t2i("config", "list")
    assert listed.returncode == 2
    assert f"{home / 't2i.toml'}: There is no setting modell." in listed.stderr
    assert "`t2i config unset modell` takes it out" in listed.stderr
    assert t2i("config", "unset", "modell").returncode == 0
    assert t2i("config", "list").returncode == 0


def test_a_secret_comes_from_standard_input_and_is_never_shown(t2i: T2I, home: Path) -> None:
    given = t2i("config", "set", "http_api_key", "sk-verysecret")
    assert given.returncode == 2
    assert "t2i config set http_api_key - < FILE" in given.stderr
    piped = t2i("config", "set", "http_api_key", "-", input="sk-verysecret\n")
    assert piped.returncode == 0, piped.stderr
    assert 'http_api_key = "sk-verysecret"' in (home / "t2i.toml").read_text()
    shown = t2i("config", "get", "http_api_key")
    listed = t2i("config", "list", "--json")
    assert shown.stdout == "********\n"
    assert "verysecret" not in given.stderr + piped.stderr + listed.stdout + listed.stderr


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "nosuchmodel", "The model 'nosuchmodel' is unknown."),
        ("model", "./nowhere", "There is no file or folder ./nowhere."),
        ("output", "out/{sed}.png", "sed"),
        ("output", "a.tiff", "unknown extension .tiff"),
        ("vertex_prices", "no.toml", "Cannot read no.toml"),
        ("vertex_prices", "bad.toml", "bad.toml"),
        ("image_prices", "no.toml", "Cannot read no.toml"),
        ("image_prices", "bad.toml", "bad.toml: [images] must give USD an image"),
    ],
)
def test_values_that_the_table_cannot_know_are_checked_too(
    t2i: T2I, home: Path, tmp_path: Path, key: str, value: str, message: str
) -> None:
    (tmp_path / "bad.toml").write_text("[machines]\nsome = 'much'\n[images]\nsome = 'much'\n")
    done = t2i("config", "set", key, value, "--json")
    assert done.returncode == 2
    error = json.loads(done.stderr)["error"]
    assert message in error["message"]
    assert error["field"] == key
    assert not (home / "t2i.toml").exists()


def test_values_that_can_be_used_are_taken(t2i: T2I, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "good.toml").write_text("[machines]\ng2-standard-4 = 0.5\n")
    for key, value in (
        ("model", "someone/their-model"),
        ("model", "folder"),
        ("model", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("output", "pictures/"),
        ("output", "picture"),
        ("vertex_prices", "good.toml"),
        ("image_prices", "good.toml"),
    ):
        done = t2i("config", "set", key, value)
        assert done.returncode == 0, done.stderr


def test_what_holds_is_listed_with_where_it_comes_from(t2i: T2I, home: Path) -> None:
    (home / "t2i.toml").write_text('memory = "low"\ndtype = "fp16"\n')
    env = {"T2I_FORMAT": "webp", "T2I_HTTP_API_KEY": "sk-verysecret"}
    lines = t2i("config", "list", "--all", env=env).stdout.splitlines()
    assert len(lines) == len(SETTINGS)
    assert {
        "model = sd15  (default)",
        "device = the best  (default)",
        "retries = 5  (default)",
        "http_url = nothing  (default)",
        f"memory = low  (file {home / 't2i.toml'})",
        f"dtype = float16  (file {home / 't2i.toml'})",
        "format = webp  (environment T2I_FORMAT)",
        "http_api_key = ********  (environment T2I_HTTP_API_KEY)",
    } <= set(lines)
    records = {
        record["key"]: record
        for record in map(
            json.loads, t2i("config", "ls", "--all", "--json", env=env).stdout.splitlines()
        )
    }
    told = {key: (record["effective"], record["from"]) for key, record in records.items()}
    assert told["model"] == ("sd15", "default")
    assert told["http_url"] == (None, "default")
    assert told["memory"] == ("low", "file")
    assert told["format"] == ("webp", "environment")
    assert told["http_api_key"] == ("********", "environment")
    assert records["model"]["value"] is None
