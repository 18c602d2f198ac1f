"""Ray's options on `generate`, `batch` and `serve`: the same on each, refused before anything."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from benchmarks.batch_scale import Constant
from t2i_cli.backends import ray as ray_backend
from t2i_cli.backends.local import LocalBackend, device
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.backends.ray import RayOptions, connection
from t2i_cli.batch import plan, timings
from t2i_cli.batch.local_folder import LocalFolder
from t2i_cli.batch.manifest import ManifestState
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.plan import SelectionOptions
from t2i_cli.batch.rows import expand_rows
from t2i_cli.errors import RemoteError
from t2i_cli.prompts.entries import PromptEntry
from tests.in_process import run_in_process

COMMANDS = (
    ("generate", "a red star", "-m", "postcard", "-o", "x.png"),
    ("batch", "prompts.txt", "-m", "postcard", "-o", "out"),
    ("serve", "-m", "postcard", "--port", "0"),
)
ON_RAY = ("--backend", "ray")
WRONG: list[tuple[tuple[str, ...], str]] = [
    *(((*ON_RAY, "--workers", value), "--workers must be auto, or") for value in ("0", "-1", "x")),
    *(
        ((*ON_RAY, "--gpus-per-worker", value), "--gpus-per-worker must be the GPUs of one worker")
        for value in ("-1", "0", "2", "nan")
    ),
    *(
        ((*ON_RAY, "--address", value), "--address must be local, auto, host:port, or ray://")
        for value in ("nonsense", "ray://", "http://x:1")
    ),
    ((*ON_RAY, "--worker-timeout", "0"), "--worker-timeout must be the seconds"),
    ((*ON_RAY, "--device", "cuda:1"), "--device cuda:1 names one card"),
    (
        (*ON_RAY, "--device", "cpu", "--gpus-per-worker", "0.5"),
        "--gpus-per-worker means nothing with --device cpu.",
    ),
    (("--workers", "2", "--backend", "local"), "--workers means nothing to the local backend."),
    (("--workers", "2"), "--workers means nothing to the local backend."),
    (("--address", "auto", "--backend", "hf"), "--address means nothing to the hf backend."),
    (("--device", "all", "--backend", "local"), "--device all is short for --backend ray, not"),
]


def test_wrong_values_are_one_sentence_on_each_command_and_load_nothing(
    t2i_env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a red star\n")
    lines = [[*command, *options] for options, _ in WRONG for command in COMMANDS]
    script = (
        "import contextlib, io, json, sys; from t2i_cli.cli.main import _run\n"
        "for line in json.load(sys.stdin):\n"
        "    told = io.StringIO()\n"
        "    with contextlib.redirect_stderr(told): code = _run(line)\n"
        "    print(json.dumps([code, told.getvalue()]))\n"
        "print(json.dumps(sorted({'ray', 'torch', 'diffusers'} & sys.modules.keys())))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=t2i_env,
        cwd=tmp_path,
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=True,
    )
    *answers, loaded = map(json.loads, done.stdout.splitlines())
    assert loaded == []
    expected = [said for _, said in WRONG for _ in COMMANDS]
    for line, said, (code, told) in zip(lines, expected, answers, strict=True):
        first, *hints = told.splitlines()
        assert (code, first[: 7 + len(said)]) == (2, f"error: {said}"), line
        assert all(hint.startswith("hint: ") for hint in hints) and len(hints) <= 1, line
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["prompts.txt"]


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a prompts file, on a machine where Ray and eight GPUs are said to be."""
    monkeypatch.setattr(device, "count_gpus", lambda: 8)
    monkeypatch.setattr(connection, "require_ray", lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red star\n")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ON_RAY, {}),
        (("--device", "all"), {}),
        (("--device", "all", "--workers", "3"), {"workers": 3}),
        ((*ON_RAY, "--workers", "auto", "--gpus-per-worker", "0.25"), {"gpus_per_worker": 0.25}),
        (
            (*ON_RAY, "--address", "ray://head:10001", "--device", "cuda", "--worker-timeout", "9"),
            {"address": "ray://head:10001", "worker_timeout": 9.0, "device": "cuda"},
        ),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_each_command_takes_them(
    eight_gpus: Path,
    t2i_env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    options: tuple[str, ...],
    expected: dict[str, Any],
) -> None:
    seen: list[RayOptions] = []

    def keep(options: RayOptions, _: object) -> NoReturn:
        seen.append(options)
        raise RemoteError("Kept.")

    monkeypatch.setattr(ray_backend, "RayBackend", keep)
    done = run_in_process(*command, *options, env=t2i_env)
    assert (done.returncode, done.stderr) == (6, "error: Kept.\n")
    (found,) = seen
    plain = RayOptions(local=LocalOptions())
    names = ("address", "workers", "gpus_per_worker", "worker_timeout")
    assert {name: getattr(found, name) for name in names} == {
        name: expected.get(name, getattr(plain, name)) for name in names
    }
    assert found.local.device == expected.get("device")


def test_the_plan_says_which_gpus_are_used(eight_gpus: Path, t2i_env: dict[str, str]) -> None:
    def planned(*options: str) -> str:
        done = run_in_process(*COMMANDS[1], "--dry-run", *options, env=t2i_env)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "one GPU of this machine is used, 7 more are not: --backend ray uses all" in planned()
    assert "on Ray, started on this machine: 8 workers, 1 GPU each" in planned("--device", "all")
    halves = planned(*ON_RAY, "--gpus-per-worker", "0.5")
    assert "on Ray, started on this machine: 16 workers, 0.5 GPU each" in halves
    assert "more are not" not in halves
    assert "GPU" not in planned("--device", "cpu")


def test_a_cluster_is_planned_by_earlier_runs_on_its_kind_of_device(
    eight_gpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(eight_gpus / "cache"))
    rows, _ = expand_rows(
        [PromptEntry(line, {"prompt": "x"}) for line in range(1, 101)], BatchOptions(), Constant()
    )
    request = rows[0].request
    timings.record_timing(request.model, "cuda:0", 3.6 / timings.relative_cost(request))

    def planned(workers: int, **local: str) -> plan.BatchPlan:
        made: Any = SimpleNamespace(size=workers, open=lambda: None)
        options = RayOptions(local=LocalOptions(**local), address="ray://head:10001")  # type: ignore[arg-type]
        backend = ray_backend.RayBackend(options, LocalBackend, lambda *_: made)
        folder = LocalFolder(eight_gpus / "out")
        return plan.build_plan(
            rows, [], folder, ManifestState(), SelectionOptions(), backend.estimate
        )

    seconds = {workers: planned(workers).seconds for workers in (1, 8, 256)}
    assert seconds == {1: pytest.approx(360), 8: pytest.approx(45), 256: pytest.approx(3.6)}
    assert "time: about 45 s, as in earlier runs" in planned(8).text()
    assert planned(8, device="cuda").seconds == planned(8, device="rocm").seconds == seconds[8]
    assert planned(8, device="cpu").seconds is None
