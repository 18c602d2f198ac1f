"""`t2i batch` and `t2i serve` on a Ray that is started on this machine, with the embedded model."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t2i_cli.backends.local import LocalBackend, LocalOptions, device
from t2i_cli.backends.ray import RayBackend, RayOptions, connection
from t2i_cli.batch import manifest, plan
from t2i_cli.batch.local_folder import LocalFolder
from t2i_cli.request import ResolvedRequest
from tests.backends import chosen
from tests.conftest import T2I
from tests.tiny_models import copy_postcard

pytest.importorskip("ray")
pytestmark = pytest.mark.full

PROMPTS = "a red star\na blue heart on a white background\na green circle\na yellow square\n"


@pytest.fixture
def env(t2i_env: dict[str, str]) -> dict[str, str]:
    """The isolated environment; workers share two cores."""
    return t2i_env | {"OMP_WAIT_POLICY": "PASSIVE"}


def records(folder: Path) -> list[Mapping[str, Any]]:
    """The manifest's lines of images, without times, in the order of the rows."""
    found = [dict(line) for line in manifest.read_records(folder / "manifest.jsonl") if line]
    for line in found:
        for name in ("time", "seconds"):
            line.pop(name, None)
    return sorted(found, key=lambda line: str(line.get("index")))


ROWS: list[dict[str, object]] = [
    {"prompt": "a red star"},
    {"prompt": "a blue heart on a white background", "negative_prompt": "a red star"},
    {"prompt": "a green circle", "width": 64, "height": 96},
    {"prompt": "a yellow square", "count": 3, "steps": 4},
    {"prompt": "a red star", "model": "broken"},
    {"prompt": "a purple moon", "seed": 7, "guidance_scale": 4.0},
]


@pytest.fixture
def four_nodes(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> Iterator[str]:
    """The address of a cluster of four nodes, each of which is said to have one CPU."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "OMP_WAIT_POLICY", "HF_HOME"):
        monkeypatch.setenv(name, env[name])
    connection.import_ray()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    try:
        for _ in range(4):
            cluster.add_node(num_cpus=1, num_gpus=0, wait=False)
        cluster.wait_for_nodes(timeout=120)
        yield cluster.address
    finally:
        cluster.shutdown()


def test_four_workers_make_the_same_manifest_and_pixels_as_this_machine(
    env: dict[str, str], tmp_path: Path, four_nodes: str
) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    # That it cannot be read is seen only when the model is loaded.
    (copy_postcard(tmp_path / "broken") / "tokenizer" / "tokenizer.json").write_text("{}")
    common = [str(source), "-m", "postcard", "--strict", "--device", "cpu", "--steps", "3"]
    common += ["--vary", "scheduler=ddim,euler", "-n", "2"]
    on_ray = ("--backend", "ray", "--address", four_nodes, "--workers", "4")
    made = {}
    for name, options in {"local": (), "ray": on_ray}.items():
        done = subprocess.run(
            [sys.executable, "-m", "t2i_cli", "batch", *common, "-o", name, *options],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 8, done.stderr
        made[name] = {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.png")}
    lines = {name: records(tmp_path / name) for name in made}
    statuses = Counter(line["status"] for line in lines["local"] if "status" in line)
    assert statuses == {"done": 22, "failed": 4}
    assert lines["ray"] == lines["local"]
    assert len(made["local"]) == 22
    assert made["ray"] == made["local"]


def test_two_workers_make_the_same_batch_as_this_machine(
    t2i: T2I, env: dict[str, str], tmp_path: Path
) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text(PROMPTS)
    common = [str(source), "-m", "postcard", "--strict", "--device", "cpu"]
    local = t2i("batch", *common, "-o", "local", env=env, cwd=tmp_path)
    assert local.returncode == 0, local.stderr
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "t2i_cli", "batch", *common, "-o", "ray"),
            *("--backend", "ray", "--workers", "2"),
        ],
        env=env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout and process.stderr
    # Ctrl-C once: what is in progress is finished, and the next run makes what is left.
    assert process.stdout.readline().startswith("ray/")
    process.send_signal(signal.SIGINT)
    printed, told = process.communicate(timeout=120)
    assert "on Ray, started on this machine: 2 workers" in told
    assert "Ray is started on this machine" in told
    assert "raylet" not in printed + told
    if process.returncode != 0:  # this machine was quicker than the signal
        assert process.returncode == 130
        again = t2i("batch", *common, "-o", "ray", env=env, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
    assert records(tmp_path / "ray") == records(tmp_path / "local")
    files = {path.name: path.read_bytes() for path in (tmp_path / "local").glob("*.png")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "ray").glob("*.png")} == files


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "all"], "This machine has no GPU."),
        (["--backend", "http", "--device", "all"], "--device all is short for --backend ray"),
        (["--backend", "ray", "--device", "cuda:1"], "names one card"),
        (["--backend", "ray", "--workers", "0"], "--workers must be auto"),
        (["--backend", "ray", "--gpus-per-worker", "2"], "--gpus-per-worker must be"),
        (["--backend", "ray", "--address", "ray://x"], "--address must be"),
        (["--workers", "2"], "--workers means nothing to the local backend"),
        (
            ["--backend", "ray", "--keep-alive", "5m"],
            "--keep-alive means nothing to the ray backend",
        ),
        (["--backend", "ray", "--address", "auto"], "No Ray runs on this machine."),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_loads(
    t2i: T2I, tmp_path: Path, options: list[str], said: str
) -> None:
    done = t2i("generate", "a red star", "-m", "postcard", "-o", "x.png", *options, cwd=tmp_path)
    assert done.returncode in {2, 6}
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.png").exists()


def test_the_plan_tells_the_workers(t2i: T2I, tmp_path: Path) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text(PROMPTS)
    on_ray = ("--backend", "ray", "--workers", "4", "--device", "cpu", "--dry-run", "--json")
    done = t2i("batch", source, "-m", "postcard", *on_ray, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(done.stdout)["models"]
    assert (model["backend"], model["address"], model["workers"]) == ("ray", "local", 4)


def test_the_settings_of_a_cluster_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_BACKEND", "ray")
    monkeypatch.setenv("RAY_ADDRESS", "ray://first:1")
    made: Any = chosen(batch_size=None, format="webp")
    assert (made._options.address, made._options.workers) == ("ray://first:1", None)
    assert made._options.local.batch_size is None
    monkeypatch.setenv("T2I_RAY_ADDRESS", "ray://second:1")
    monkeypatch.setenv("T2I_RAY_WORKERS", "8")
    monkeypatch.setenv("T2I_RAY_GPUS_PER_WORKER", "0.5")
    made = chosen(strict=True, worker_timeout="9")
    options = made._options
    assert (options.address, options.workers, options.gpus_per_worker) == ("ray://second:1", 8, 0.5)
    assert (options.worker_timeout, options.local.strict, options.uses_gpus) == (9.0, True, True)


def test_a_machine_with_several_gpus_is_told_how_to_use_them_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "count_gpus", lambda: 8)
    request = ResolvedRequest(
        prompt="x", model="postcard", seed=1, steps=2, width=128, height=128, guidance_scale=2.0
    )
    assert LocalBackend(LocalOptions()).estimate(request)["unused_gpus"] == 7
    assert "unused_gpus" not in LocalBackend(LocalOptions(device="cpu")).estimate(request)
    on_ray = RayBackend(RayOptions(local=LocalOptions(), gpus_per_worker=0.5), LocalBackend)
    estimate = on_ray.estimate(request)
    assert (estimate["workers"], estimate["gpus_per_worker"]) == (16, 0.5)
    plan = _plan([{"model": "postcard", "unused_gpus": 7}, {"model": "postcard", **estimate}])
    assert "7 more are not: --backend ray uses all" in plan
    assert "on Ray, started on this machine: 16 workers, 0.5 GPU each" in plan


def _plan(estimates: list[dict[str, object]]) -> str:
    """The text of an empty batch's plan with these estimates."""
    planned = plan.build_plan(
        [], [], LocalFolder(Path.cwd()), manifest.ManifestState(), plan.SelectionOptions()
    )
    return replace(planned, estimates=estimates).text()
