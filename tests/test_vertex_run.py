"""`t2i remote run`: an endpoint for one command, gone whatever happens to either."""

import json
import os
import random
import signal
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from t2i_cli.batch import lock
from t2i_cli.net import google_http
from t2i_cli.vertex import removal
from tests.amounts import full, sampled
from tests.conftest import T2I
from tests.fakes.google import painted_png, refusal
from tests.fakes.vertex import FakeVertex, Fault, counted
from tests.processes import running, until

RUN = ("remote", "run", "--yes", "--model", "sd15")
KEEPER = ("--service-account", "keeper@gallery.iam.gserviceaccount.com")


@pytest.mark.parametrize("code", [0, 7])
def test_the_command_s_exit_code_and_environment(t2i: T2I, vertex: FakeVertex, code: int) -> None:
    script = (
        "import os, sys; print(os.environ['T2I_BACKEND'], os.environ['T2I_VERTEX_ENDPOINT']); "
        f"sys.exit({code})"
    )
    done = t2i(*RUN, "--", sys.executable, "-c", script, env=vertex.environment)
    assert done.returncode == code, done.stderr
    backend, endpoint = done.stdout.split()
    assert backend == "vertex"
    assert endpoint.startswith("projects/gallery/locations/us-central1/endpoints/")
    assert len(vertex.spans) == 1
    assert vertex.left() == {}


def test_a_command_that_does_not_exist(t2i: T2I, vertex: FakeVertex, tmp_path: Path) -> None:
    done = t2i(*RUN, "--", "no-such-command", env=vertex.environment)
    assert done.returncode == 2
    assert "Cannot run no-such-command: there is no such command." in done.stderr
    assert vertex.left() == {}
    assert counted(vertex).keys() <= {"POST token"}
    # One that is found, and is no program.
    (tmp_path / "script").write_bytes(b"\x00")
    (tmp_path / "script").chmod(0o755)
    odd = t2i(*RUN, "--", tmp_path / "script", env=vertex.environment)
    assert odd.returncode == 2
    assert "Cannot run" in odd.stderr
    assert vertex.left() == {}


def test_a_deployment_that_half_succeeds(t2i: T2I, vertex: FakeVertex, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model_index.json").write_text("{}")
    vertex.operation_errors["deployModel"] = {"code": 13, "message": "Internal error."}
    done = t2i(*RUN[:3], "-m", weights, *KEEPER, "--", "true", env=vertex.environment)
    assert done.returncode == 6
    assert "Internal error." in done.stderr
    assert vertex.left() == {}


def test_it_never_removes_what_was_there(t2i: T2I, vertex: FakeVertex) -> None:
    env = vertex.environment
    assert t2i("remote", "deploy", "-m", "sd15", "--yes", env=env).returncode == 0
    taken = t2i(*RUN, "--name", "sd15", "--", "true", env=env)
    assert taken.returncode == 2
    assert t2i(*RUN, "--", "true", env=env).returncode == 0
    assert len(vertex.left()["deployed"]) == 1
    # The endpoint in use is still the one from before.
    assert t2i("remote", "down", env=env).returncode == 0
    assert vertex.left() == {}


def test_the_ttl_ends_the_command(t2i: T2I, vertex: FakeVertex) -> None:
    done = t2i(*RUN, "--ttl", "6s", "--", "sleep", "100", env=vertex.environment)
    assert done.returncode == 143
    assert "warning: The TTL of the endpoint is over." in done.stderr
    assert vertex.left() == {}


@pytest.mark.full  # the waits of the tries; one refusal is `down`'s, in test_vertex_life.py
def test_a_removal_that_fails_is_tried_for_minutes(t2i: T2I, vertex: FakeVertex) -> None:
    body = refusal(503, "UNAVAILABLE", "Not now.")
    # The tries of a call times those of a step, and one more.
    times = google_http.MAX_ATTEMPTS * removal.VERIFY_ATTEMPTS + 1
    vertex.faults = [Fault(where="DELETE .*/endpoints", status=503, body=body, times=times)]
    done = t2i(*RUN, "--", "true", env=vertex.environment)
    assert done.returncode == 0, done.stderr
    assert "The removal is tried again." in done.stderr
    assert vertex.left() == {}


@pytest.mark.parametrize(
    ("number", "stage"),
    sampled(product((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), ("deploying", "running"))),
)
def test_signals(
    t2i_env: dict[str, str], vertex: FakeVertex, number: signal.Signals, stage: str
) -> None:
    vertex.operation_seconds = 0.3
    with running(t2i_env, vertex, *RUN, "--", "sleep", "60") as process:
        if stage == "deploying":
            until(lambda: any(o.kind == "deployModel" for o in vertex.operations.values()), process)
        else:
            until(lambda: vertex.spans, process)
            time.sleep(1.0)
        if number == signal.SIGINT:
            # A terminal sends it to the command as well.
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        time.sleep(0.05)
        process.send_signal(number)  # an impatient second one
        _, errors = process.communicate(timeout=120)
    terminated = signal.SIGTERM if number == signal.SIGHUP else number
    assert process.returncode == 128 + terminated, errors
    assert vertex.left() == {}, errors


def arrived(vertex: FakeVertex, count: int) -> bool:
    """Whether so many requests have reached the fake."""
    return len(vertex.requests) >= count


@pytest.mark.parametrize("kills", [5, full(100)])
def test_killed_at_random_moments(
    t2i: T2I, t2i_env: dict[str, str], vertex: FakeVertex, tmp_path: Path, kills: int
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    for name in ("a.safetensors", "b.safetensors"):
        (weights / name).write_bytes((2).to_bytes(8, "little") + b"{}")
    vertex.operation_seconds = 0.05
    chance = random.Random(7)  # noqa: S311 - no secret
    with running(t2i_env, vertex, *RUN[:3], "-m", str(weights), *KEEPER, "--", "true") as process:
        assert process.wait(120) == 0
    whole = len(vertex.requests)
    assert vertex.left() == {}
    made: set[str] = set()
    for _ in range(kills // 5):
        for fifth in range(5):
            # A moment of each part of a run, so that few kills meet all of it.
            seen, wanted = len(vertex.requests), int((fifth + chance.random()) * whole / 5)
            pause = chance.uniform(0, 0.03)
            with running(
                t2i_env, vertex, *RUN[:3], "-m", str(weights), *KEEPER, "--", "true"
            ) as process:
                until(partial(arrived, vertex, seen + wanted), process)
                time.sleep(pause)
        time.sleep(0.2)  # what was begun ends in the cloud
        made |= set(vertex.left())
        # What is left makes lists longer, and would move the moments of later runs.
        vertex.advance(5 * 3600)
        done = t2i("remote", "reap", env=vertex.environment)
        assert done.returncode == 0, done.stderr
        assert vertex.left() == {}, done.stderr
    assert {"endpoints", "models", "objects"} <= made


def test_an_ephemeral_batch(t2i: T2I, vertex: FakeVertex, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red star\na blue moon\n")
    batch = ("batch", file, "-o", tmp_path / "out", "-m", "sd15", "--ephemeral", "--yes")
    done = t2i(*batch, env=vertex.environment)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    assert len(vertex.predictions) == 2
    assert len(vertex.spans) == 1
    assert vertex.left() == {}
    both = t2i(*batch, "--endpoint", "5", env=vertex.environment)
    assert both.returncode == 2
    for wrong in (
        ("--batch-size", "many"),
        ("--max-failures", "many"),
        ("--device", "cuda"),
        ("-o", file),
    ):
        early = t2i(*batch, *wrong, env=vertex.environment)
        assert early.returncode == 2, early.stderr
    for option, value, nothing in (
        ("--ttl", "1h", "without --ephemeral"),
        ("--max-cost", "3", "to the local backend"),
    ):
        alone = t2i("batch", file, "-m", "postcard", option, value)
        assert alone.returncode == 2
        assert f"{option} means nothing {nothing}" in alone.stderr
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "steps": "many"}\n')
    bad = t2i("batch", tmp_path / "bad.jsonl", "--ephemeral", "--yes", env=vertex.environment)
    assert bad.returncode == 2
    assert len(vertex.spans) == 1


def test_an_ephemeral_batch_is_checked_before_anything_is_made(
    t2i: T2I, vertex: FakeVertex, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red star"}\n')
    batch = ("batch", "prompts.jsonl", "-o", "out", "-m", "sd15", "--ephemeral", "--yes")
    for wrong, sentence in {
        ("--name", "{nope}"): "nope",
        ("--name", "../{index}"): "leaves the folder",
        ("--name", "same", "-n", "2"): "is taken by line 1 already",
        ("--format", "bmp"): "bmp",
        ("--scheduler", "ddim"): "The endpoint to be made takes no scheduler",
        ("--seeds", "4-1"): "no range of seeds",
        ("--width", "100000000"): "width",
        ("--count", "0"): "count must be at least 1",
        ("--timeout", "0"): "--timeout",
        ("--serving", "flask"): "--serving must be",
        ("-m", "no-such-model"): "The model 'no-such-model' is unknown",
        ("--show",): "terminal",
    }.items():
        early = t2i(*batch, *wrong, env=vertex.environment)
        assert (early.returncode, sentence in early.stderr) == (
            9 if "no-such-model" in wrong else 2,
            True,
        ), (wrong, early.stderr)
    rows = '{"prompt": "a"}\n{"prompt": "b", "model": "sdxl"}\n'
    piped = t2i("batch", "-", *batch[2:], "--input-format", "jsonl", input=rows,
                env=vertex.environment)  # fmt: skip
    assert piped.returncode == 2
    assert "standard input:2: model" in piped.stderr
    assert "The endpoint to be made has" in piped.stderr
    assert vertex.requests == []
    assert not (tmp_path / "out").exists()


def test_an_ephemeral_batch_from_a_pipe_and_one_with_nothing_to_make(
    t2i: T2I, vertex: FakeVertex, tmp_path: Path
) -> None:
    batch = ("batch", "-", "-o", tmp_path / "out", "-m", "sd15", "--ephemeral", "--yes")
    done = t2i(*batch, input="a red star\na blue moon\n", env=vertex.environment)
    assert done.returncode == 0, done.stderr
    assert len(vertex.predictions) == 2
    assert counted(vertex)["POST deployModel"] == 1
    with lock.lock_folder(tmp_path / "out", None):
        busy = t2i(*batch, input="a green tree\n", env=vertex.environment)
    assert busy.returncode == 2
    assert "Another run is at work" in busy.stderr
    again = t2i(*batch, "--json", input="a red star\na blue moon\n", env=vertex.environment)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["made"] == 0
    assert counted(vertex)["POST deployModel"] == 1
    assert vertex.left() == {}


def test_an_ephemeral_batch_of_weights_from_here(
    t2i: T2I, vertex: FakeVertex, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model_index.json").write_text("{}")
    (tmp_path / "prompts.txt").write_text("a red star\n")
    batch = ("batch", tmp_path / "prompts.txt", "-o", tmp_path / "out", "-m", weights, *KEEPER)
    dear = t2i(*batch, "--ephemeral", "--yes", "--max-cost", "0.1", env=vertex.environment)
    assert dear.returncode == 2
    assert "more than --max-cost 0.10" in dear.stderr
    assert counted(vertex)["POST endpoints"] == 0
    done = t2i(*batch, "--ephemeral", "--yes", env=vertex.environment)
    assert done.returncode == 0, done.stderr
    assert "enforced by  this command, while this machine is on; `t2i remote reap`" in done.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    assert vertex.left() == {}


def test_an_ephemeral_batch_keeps_its_limit_and_runs_as_the_service_account(
    t2i: T2I, vertex: FakeVertex, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a red star\n")
    batch = ("batch", "prompts.txt", "-o", "out", "-m", "sd15", "--ephemeral", "--yes", *KEEPER)
    dear = t2i(*batch, "--max-cost", "0.1", env=vertex.environment)
    assert dear.returncode == 2
    assert "more than --max-cost 0.10" in dear.stderr
    assert vertex.spans == []
    accounts: list[str] = []

    def predict(body: dict[str, Any]) -> tuple[int, Any]:
        (endpoint,) = vertex.endpoints.values()
        accounts.extend(one["serviceAccount"] for one in endpoint["deployedModels"])
        return 200, {"predictions": [painted_png(one) for one in body["instances"]]}

    vertex.predictor = predict
    done = t2i(*batch, "--max-cost", "4", env=vertex.environment)
    assert done.returncode == 0, done.stderr
    assert accounts == [KEEPER[1]]
    assert vertex.left() == {}
