"""The examples for clusters: the script for Slurm, its commands played, and Ray's launcher."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPT = EXAMPLES / "slurm.sh"
HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")

SCONTROL = """#!/usr/bin/env bash
echo "$@" >>"$FAKE_SLURM/scontrol"
[ "$1 $2" != "show hostnames" ] || printf 'node%s\\n' $(seq "$FAKE_NODES")
"""
SRUN = """#!/usr/bin/env bash
# A step: its nodes are this machine, and its command runs once for each task. Options of srun
# that it does not know end it.
tasks=1
while [[ $1 == --* ]]; do
    case $1 in
        --ntasks=*) tasks=${1#*=} ;;
        --nodes=* | --nodelist=* | --exclude=* | --ntasks-per-node=*) ;;
        *) echo "srun: unrecognized option '$1'" >&2 && exit 1 ;;
    esac
    shift
done
echo "$tasks $*" >>"$FAKE_SLURM/srun"
[ "$1" != python ] || exec "$@"
[[ "$*" != *"$FAKE_FAILS"* ]] || exit 1
for ((n = 0; n < tasks; n++)); do "$@" --num-cpus=1 & done
trap 'kill $(jobs -p)' TERM
wait || wait
"""


class Slurm:
    """A folder with `srun`, `scontrol` and the programs under test, on the PATH of a job."""

    def __init__(self, folder: Path, env: dict[str, str], nodes: int, fails: str = "\n") -> None:
        self.folder = folder
        commands = {
            "srun": SRUN,
            "scontrol": SCONTROL,
            "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
            "t2i": f'#!/bin/sh\nexec {sys.executable} -m t2i_cli "$@"\n',
            "ray": f'#!/bin/sh\nexec {sys.executable} -m ray.scripts.scripts "$@"\n',
        }
        path = folder / "bin"
        path.mkdir()
        for name, text in commands.items():
            (path / name).write_text(text)
            (path / name).chmod(0o755)
        # A job's number decides its ports: one that no other test has at the time.
        self.env = env | {
            "PATH": f"{path}{os.pathsep}{env['PATH']}",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": f"node[1-{nodes}]",
            "FAKE_SLURM": str(folder),
            "FAKE_NODES": str(nodes),
            "FAKE_FAILS": fails,
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start the script, as the batch step of a job."""
        return subprocess.Popen(
            ["bash", SCRIPT, *arguments],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def left(self) -> list[str]:
        """Commands of Ray's processes of this job that still run."""
        token = f"{20000 + 3 * (int(self.env['SLURM_JOB_ID']) % 4000)}"
        found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
        return [line for line in found.stdout.splitlines() if f":{token}" in line]


def test_the_script_is_one_that_bash_reads() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="there is no shellcheck")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", "--severity=style", SCRIPT], check=True)


def test_the_script_tells_how_it_is_used() -> None:
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: sbatch")


@needs_ray
def test_a_node_that_does_not_start_ends_the_job(t2i_env: dict[str, str], tmp_path: Path) -> None:
    slurm = Slurm(tmp_path, t2i_env, nodes=1, fails="--head")
    job = slurm.start("prompts.txt")
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 1
    assert f"A node of Ray ended. See ray-{slurm.env['SLURM_JOB_ID']}.log." in said


@needs_ray
@pytest.mark.full
def test_two_nodes_make_a_batch_that_goes_on_after_the_time_is_up(
    t2i_env: dict[str, str], tmp_path: Path
) -> None:
    slurm = Slurm(tmp_path, t2i_env, nodes=2)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a red star {n}\n" for n in range(60)))
    batch = ["prompts.txt", "-m", "postcard", "-o", "images", "--device", "cpu", "--workers", "2"]
    job = slurm.start(*batch)
    end = time.monotonic() + 600
    while len(list(tmp_path.glob("images/*.png"))) < 4:
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < end, (tmp_path / f"ray-{os.getpid()}.log").read_text()
        time.sleep(0.1)
    # Slurm sends it to the batch step alone.
    os.kill(job.pid, signal.SIGTERM)
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 143, said
    assert slurm.left() == []
    made = len(list(tmp_path.glob("images/*.png")))
    assert 4 <= made < 60
    assert f"requeue {os.getpid()}" in (tmp_path / "scontrol").read_text()
    # The job that was queued again makes the others, and no more.
    job = slurm.start(*batch, "--json")
    said, _ = job.communicate(timeout=900)
    assert job.returncode == 0, said
    summary = json.loads(said.splitlines()[-1])
    assert (summary["images"], summary["made"], summary["done"]) == (60, 60 - made, 60)
    assert slurm.left() == []
    steps = (tmp_path / "srun").read_text().splitlines()
    assert sum("ray start --head --block" in step for step in steps) == 2
    assert sum(step.startswith("1 ray start --block") for step in steps) == 2


@needs_ray
def test_the_cluster_of_rays_launcher_is_valid() -> None:
    spec = importlib.util.find_spec("ray")
    assert spec
    assert spec.origin
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster: dict[str, Any] = yaml.safe_load((EXAMPLES / "ray-cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    changes: list[dict[str, Any]] = [{"max_worker": 8}, {"max_workers": "8"}, {"provider": {}}]
    for change in changes:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(cluster | change, schema)
    # What a schema does not hold: the parts name each other, and Ray's own version.
    assert cluster["head_node_type"] in cluster["available_node_types"]
    workers = cluster["available_node_types"]["gpu"]
    assert workers["resources"]["GPU"] == 1
    assert workers["max_workers"] == cluster["max_workers"]
    text = (EXAMPLES / "ray-cluster.yaml").read_text()
    versions = set(re.findall(r"2\.\d+\.\d+", text))
    assert len(versions) == 1
    command = shlex.split(re.search(r"'(t2i batch [^']*)'", text)[1])  # type: ignore[index]
    assert command[command.index("--workers") + 1] == str(workers["max_workers"])
