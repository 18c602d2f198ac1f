"""Batches and images in an S3 bucket, through real processes: nothing lost, nothing doubled."""

import json
import random
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from t2i_cli import postcard
from t2i_cli.batch import manifest
from tests.amounts import full
from tests.conftest import T2I
from tests.s3_server import S3Server
from tests.test_batch_crash import SOURCE, images, kill_at_random, paint, prompts

KILLS = pytest.mark.parametrize("kills", [3, full(50)])


@pytest.fixture(scope="module")
def _server() -> Iterator[S3Server]:
    for package in ("moto", "flask", "flask_cors", "s3fs"):
        pytest.importorskip(package)
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(_server: S3Server) -> Iterator[S3Server]:
    """The server, which answers all again after each test."""
    yield _server
    _server.answer, _server.cut = lambda method, path: None, False
    _server.asked.clear()


@pytest.fixture
def env(t2i_env: dict[str, str], s3: S3Server) -> dict[str, str]:
    """An isolated environment with the server's keys; retries are quick."""
    return t2i_env | s3.env | {"PYTHONPATH": str(SOURCE), "RETRY_PAUSE": "0.05"}


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    """The test's own folder in the bucket."""
    return str(request.node.name).partition("[")[0]


def run(
    env: Mapping[str, str], where: Path, source: Path, place: str, *args: str
) -> "subprocess.CompletedProcess[str]":
    """A painting process, to its end."""
    command = paint(source, place, *args)
    return subprocess.run(command, env=dict(env), capture_output=True, text=True, cwd=where)


def calm_images(env: Mapping[str, str], where: Path, source: Path) -> dict[str, bytes]:
    """What an undisturbed run on a disk makes."""
    done = run(env, where, source, str(where / "calm"), "--json")
    assert done.returncode == 0, done.stderr
    return images(where / "calm")


def assert_whole(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> None:
    """The folder holds exactly the images, a done line for each, the gallery, and no part."""
    assert {name: data for name, data in found.items() if name.endswith(".png")} == expected
    assert found.keys() - expected.keys() == {"manifest.jsonl", "index.html"}
    header, *lines = [json.loads(line) for line in found["manifest.jsonl"].splitlines()]
    assert header["t2i_manifest"] == manifest.MANIFEST_SCHEMA
    assert sorted(str(line["file"]) for line in lines if line["status"] == "done") == sorted(
        expected
    )


@KILLS
def test_killed_at_random_moments_ends_as_undisturbed(
    env: dict[str, str], s3: S3Server, folder: str, tmp_path: Path, kills: int
) -> None:
    count = 6 * kills
    source = prompts(tmp_path, count)
    place = f"s3://{s3.bucket}/{folder}-{kills}"
    expected = calm_images(env | {"PAUSE": "0"}, tmp_path, source)
    assert len(expected) == count
    command = paint(source, place, "--events")
    slow = env | {"PAUSE": "0.05"}
    kill_at_random(command, slow, tmp_path, kills, random.Random(3), 0.6)  # noqa: S311
    # From another machine: nothing of the folder is on this one, and no lock outlives its run.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run(env | {"HOME": str(elsewhere)}, elsewhere, source, place, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == count
    assert_whole(s3.objects(f"{folder}-{kills}"), expected)


@pytest.mark.parametrize("status", [500, 503])
def test_a_store_that_fails_now_and_then_is_asked_again(
    env: dict[str, str], s3: S3Server, folder: str, tmp_path: Path, status: int
) -> None:
    source = prompts(tmp_path, 20)
    expected = calm_images(env, tmp_path, source)
    # Whatever is asked for fails when it is asked for the first time.
    s3.answer = lambda method, path: status if s3.asked.count((method, path)) == 1 else None
    done = run(env, tmp_path, source, f"s3://{s3.bucket}/{folder}-{status}", "--json")
    s3.answer = lambda method, path: None
    assert done.returncode == 0, done.stderr
    assert_whole(s3.objects(f"{folder}-{status}"), expected)


def test_a_network_that_is_cut_ends_the_run_and_the_next_one_goes_on(
    env: dict[str, str], s3: S3Server, folder: str, tmp_path: Path
) -> None:
    source = prompts(tmp_path, 40)
    expected = calm_images(env, tmp_path, source)
    place = f"s3://{s3.bucket}/{folder}"

    def cut_at_last(method: str, path: str) -> None:
        s3.cut = s3.cut or sum(asked == "PUT" for asked, _ in s3.asked) > 15

    s3.answer = cut_at_last
    broken = run(env | {"PAUSE": "0.02"}, tmp_path, source, place, "--json")
    assert broken.returncode in (6, 8), broken.stderr
    assert "Traceback" not in broken.stderr
    assert "Run the same command again" in broken.stderr
    account = json.loads(broken.stdout)
    assert account["done"] < 40
    s3.cut = False
    s3.answer = lambda method, path: None
    before = {name: data for name, data in s3.objects(folder).items() if name.endswith(".png")}
    assert before.items() <= expected.items()
    done = run(env, tmp_path, source, place, "--json")
    assert done.returncode == 0, done.stderr
    assert_whole(s3.objects(folder), expected)


def test_one_run_at_a_time_and_ctrl_c_leaves_no_lock(
    env: dict[str, str], s3: S3Server, folder: str, tmp_path: Path
) -> None:
    source, place = prompts(tmp_path, 60), f"s3://{s3.bucket}/{folder}"
    command = paint(source, place, "--events")
    first = subprocess.Popen(
        command,
        env=env | {"PAUSE": "0.1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert first.stderr is not None
    while (line := first.stderr.readline()) and json.loads(line)["event"] != "step":
        pass
    second = run(env, tmp_path, source, place)
    assert second.returncode == 2
    assert f"Another run is at work in '{place}' (process {first.pid} on " in second.stderr
    first.send_signal(signal.SIGINT)
    events = [json.loads(line) for line in first.stderr.read().splitlines()]
    first.stderr.close()
    assert first.wait() == 130
    found = s3.objects(folder)
    made = [name for name in found if name.endswith(".png")]
    assert len(made) == events[-2]["done"] > 0
    assert not [name for name in found if name.startswith(".t2i/")]
    assert run(env, tmp_path, source, place).returncode == 0


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"place": "s3://nothing-here/x"}, 2, "there is no such bucket"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, 3, "no usable credentials"),
        ({"status": "403"}, 3, "it is not allowed"),
        ({"read only": "403"}, 3, "it is not allowed"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 6, "Could not connect"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_told_before_a_model_is_loaded(
    env: dict[str, str],
    s3: S3Server,
    folder: str,
    tmp_path: Path,
    change: dict[str, str],
    code: int,
    said: str,
) -> None:
    place = change.pop("place", f"s3://{s3.bucket}/{folder}")
    if change.pop("status", None):
        s3.answer = lambda method, path: 403
    if change.pop("read only", None):
        s3.answer = lambda method, path: 403 if method == "PUT" else None
    isolated = env | change | {"AWS_EC2_METADATA_DISABLED": "true", "LOAD": "60"}
    isolated = {key: value for key, value in isolated.items() if value}
    ended = run(isolated, tmp_path, prompts(tmp_path, 2), place)
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("error:") == 1


def test_commands_of_a_user(t2i: T2I, s3: S3Server, folder: str, tmp_path: Path) -> None:
    place = f"s3://{s3.bucket}/{folder}"
    source = prompts(tmp_path, 2)
    steps = ["-m", "postcard", "--steps", "2"]
    planned = t2i("batch", str(source), *steps, "-o", place, "--dry-run", env=s3.env)
    assert f"2 of 2 images to make in {place}\n" in planned.stdout
    assert "are free" not in planned.stdout
    assert s3.objects(folder) == {}
    made = t2i("batch", str(source), *steps, "-o", place, "--sheet", "--json", env=s3.env)
    account = json.loads(made.stdout)
    assert (account["made"], account["done"]) == (2, 2)
    assert account["sheet"] == f"{place}/sheet.png"
    found = s3.objects(folder)
    pictures = [name for name in found if name.endswith(".png") and name != "sheet.png"]
    assert len(pictures) == 2
    assert found["sheet.png"].startswith(b"\x89PNG")
    assert all(name.encode() in found["index.html"] for name in pictures)
    assert not [name for name in found if name.startswith((".t2i/", "manifest/"))]


def test_shards_work_beside_each_other_and_are_merged(
    env: dict[str, str], t2i: T2I, s3: S3Server, folder: str, tmp_path: Path
) -> None:
    place, source = f"s3://{s3.bucket}/{folder}", prompts(tmp_path, 12)
    expected = calm_images(env, tmp_path, source)
    for half in ("1/2", "2/2"):
        made = run(env | {"SHARD": half}, tmp_path, source, place)
        assert made.returncode == 0, made.stderr
        assert all(line.startswith(f"{place}/") for line in made.stdout.splitlines())
    merged = t2i("batch", "--merge", place, env=s3.env)
    assert merged.stdout == f"{place}/manifest.jsonl\n"
    assert "2 shards merged: 12 done" in merged.stderr
    assert_whole(s3.objects(folder), expected)


def test_a_model_in_a_bucket_is_used_by_its_url(
    t2i: T2I, t2i_env: dict[str, str], s3: S3Server, folder: str, tmp_path: Path
) -> None:
    url = f"s3://{s3.bucket}/{folder}"
    for path in postcard.FOLDER.rglob("*"):
        if path.is_file():
            s3.put(f"{folder}/{path.relative_to(postcard.FOLDER).as_posix()}", path.read_bytes())
    command = ["generate", "a red star", "-m", url, "--steps", "1", "-s", "7", "-o", "a.png"]
    planned = t2i(*command, "--dry-run", "--json", env=s3.env)
    assert json.loads(planned.stdout)["plan"]["download_mib"] == 15, planned.stdout
    made = t2i(*command, "--json", env=s3.env)
    assert json.loads(made.stdout)["model"] == url, made.stderr
    assert f"{url} takes 16.0 MB; downloading." in made.stderr
    whole = t2i("models", "pull", url, "-q", env=s3.env).stdout.strip()
    assert Path(whole).is_relative_to(t2i_env["XDG_CACHE_HOME"])
    assert (Path(whole) / "model_index.json").is_file()
    assert t2i("models", "path", url).stdout.strip() == whole
    shown = json.loads(t2i("models", "show", url, "--json", env=s3.env).stdout)
    assert (shown["name"], shown["downloaded"]) == (url, "whole")
    listed = [json.loads(line) for line in t2i("models", "list", "--json").stdout.splitlines()]
    assert [(one["downloaded"], one["folder"]) for one in listed if one["name"] == url] == [
        ("whole", whole)
    ]
    assert "are free again" in t2i("models", "remove", url, "--yes").stderr
    assert not Path(whole).exists()
    again = t2i(*command, "--overwrite", "--offline")
    assert again.returncode == 9
    assert f"{url} is not downloaded to this machine." in again.stderr


def test_generate_writes_to_a_url_and_replaces_nothing_unasked(
    t2i: T2I, s3: S3Server, folder: str
) -> None:
    command = ["generate", "a red star", "-m", "postcard", "--steps", "1", "-s", "7"]
    place = f"s3://{s3.bucket}/{folder}"
    made = t2i(*command, "-o", f"{place}/", env=s3.env)
    assert made.stdout == f"{place}/a-red-star-7.png\n"
    assert s3.objects(folder)["a-red-star-7.png"].startswith(b"\x89PNG")
    refused = t2i(*command, "-o", place, env=s3.env)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"The output '{place}/a-red-star-7.png' exists." in refused.stderr
    named = t2i(*command, "-o", f"{place}/{{seed}}.webp", "--json", env=s3.env)
    assert json.loads(named.stdout)["path"] == f"{place}/7.webp"
    assert s3.objects(folder).keys() == {"a-red-star-7.png", "7.webp"}
