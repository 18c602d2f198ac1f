"""What a Ray that is started on this machine meets: signals, a killed raylet, memory, downloads."""

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag

import psutil
import pytest

from t2i_cli import postcard
from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalOptions
from t2i_cli.backends.ray import RayBackend, RayOptions
from t2i_cli.batch import manifest
from t2i_cli.buckets.copy_download import COPY_CHUNK_BYTES
from t2i_cli.events import Event, MemoryMeasure
from t2i_cli.request import ResolvedRequest
from tests.fakes.hub import LARGE, FakeHub, Repo
from tests.fakes.ray_workers import make_short_of_memory
from tests.s3_server import S3Server

pytest.importorskip("ray")
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore")]

SOURCE = Path(__file__).parent.parent
ROWS = 40
StartBatch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_batch(t2i_env: dict[str, str], tmp_path: Path) -> StartBatch:
    """Start a batch of ROWS images on a Ray of its own, in a process group of its own."""
    source = tmp_path / "prompts.txt"
    source.write_text("\n".join(f"a red star {number}" for number in range(ROWS)))

    def start(*options: str, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
        common = ["batch", str(source), "--steps", "4", "--batch-size", "1", "--device", "cpu"]
        common += ["--backend", "ray", "-o", "out", *(options or ("-m", "postcard"))]
        return subprocess.Popen(
            [sys.executable, "-m", "t2i_cli", *common],
            env=t2i_env | (env or {}),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def await_image(process: "subprocess.Popen[str]") -> None:
    assert process.stdout
    assert process.stdout.readline().startswith("out/")


def made(folder: Path) -> list[str]:
    """The files of the manifest's lines of images, each of which is there once."""
    lines = manifest.read_records(folder / "out" / "manifest.jsonl")
    files = [str(line["file"]) for line in lines if line and line.get("status") == "done"]
    assert len(files) == len(set(files))
    assert {path.name for path in (folder / "out").glob("*.png")} == set(files)
    return files


def test_sigterm_ends_a_batch_as_without_ray(start_batch: StartBatch, tmp_path: Path) -> None:
    process = start_batch()
    await_image(process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 143, told
    assert "*** SIGTERM" not in told
    assert "Run the same command again to go on" in told
    assert 0 < len(made(tmp_path)) < ROWS


@pytest.mark.parametrize("kills", [1, 5])
def test_the_killed_raylet_of_the_command_itself_costs_no_row(
    start_batch: StartBatch, tmp_path: Path, kills: int
) -> None:
    for kill in range(kills):
        process = start_batch()
        await_image(process)
        time.sleep(0.2 * kill)
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.name() == "raylet":
                child.kill()
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
        assert "Traceback" not in told
        assert len(made(tmp_path)) == ROWS
        shutil.rmtree(tmp_path / "out")


def test_a_killed_head_ends_the_run_and_the_next_one_goes_on(
    start_batch: StartBatch, tmp_path: Path
) -> None:
    process = start_batch()
    await_image(process)
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.name() in {"raylet", "gcs_server"}:
            child.kill()
    _, told = process.communicate(timeout=300)
    assert process.returncode in {0, 6, 8}, told
    assert "Traceback" not in told
    process = start_batch()
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert len(made(tmp_path)) == ROWS


def test_a_model_is_downloaded_once_a_node(
    start_batch: StartBatch, hub: FakeHub, tmp_path: Path
) -> None:
    hub.repos["someone/cards"] = repo = Repo.from_folder(postcard.FOLDER)
    hub.drip = 0.2  # so that both workers are there while it lasts
    process = start_batch("-m", "someone/cards", "--workers", "2", env=hub.environment)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert len(made(tmp_path)) == ROWS
    assert told.count("downloading") == 2, told
    fetched = Counter(hub.fetched())
    assert set(fetched.values()) == {1}, fetched
    large = [data for name, data in repo.files.items() if name.endswith(LARGE)]
    assert large
    for data in large:
        assert any(hashlib.sha256(data).hexdigest() in name for name in fetched)


def test_a_model_in_a_bucket_is_fetched_once_a_node(
    start_batch: StartBatch, tmp_path: Path
) -> None:
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    server = S3Server()
    for path in postcard.FOLDER.rglob("*"):
        if path.is_file():
            server.put(f"card/{path.relative_to(postcard.FOLDER).as_posix()}", path.read_bytes())
    try:
        url = f"s3://{server.bucket}/card"
        process = start_batch("-m", url, "--workers", "2", env=server.env)
        _, told = process.communicate(timeout=300)
    finally:
        server.close()
    assert process.returncode == 0, told
    assert len(made(tmp_path)) == ROWS
    asked = Counter(path for method, path in server.asked if method == "GET")
    assert {
        path.rpartition("card/")[2]: count
        for path, count in asked.items()
        if path.endswith(".safetensors")
    } == {
        path.relative_to(postcard.FOLDER).as_posix(): -(-path.stat().st_size // COPY_CHUNK_BYTES)
        for path in postcard.FOLDER.rglob("*.safetensors")
    }


def test_out_of_memory_takes_a_measure_on_that_worker_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ONCE", str(tmp_path / "once"))
    events: list[Event] = []
    measures: set[tuple[str, ...]] = set()
    options = RayOptions(local=LocalOptions(device="cpu", batch_size=1), workers=2)
    request = ResolvedRequest(
        prompt="a red star",
        model="postcard",
        seed=1,
        steps=2,
        width=128,
        height=128,
        guidance_scale=2.0,
    )
    requests = [replace(request, seed=seed) for seed in range(6)]
    with closing(RayBackend(options, make_short_of_memory)) as backend:
        backend.load(requests[0], lambda _: None)
        end = time.monotonic() + 200
        while len(measures) < 2:  # until both workers have made an image
            assert time.monotonic() < end
            for outcome in backend.run(requests, events.append, Flag()):
                assert isinstance(outcome, GeneratedImage)
                measures.add(outcome.info.measures)
    assert measures == {(), ("vae-tiling",)}
    assert [one.name for one in events if isinstance(one, MemoryMeasure)] == ["vae-tiling"]
