"""The benchmark of a card, tried without one: what it prints, leaves out and calls a miss."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import gpu, gpu_models, gpu_wheels

ROOT = Path(__file__).parents[1]


def test_a_table_shows_what_was_missed_and_what_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = gpu.Report()
    report.add(model="sd15", built=1.5)
    report.add(model="sd15", side="t2i", first=1.8, seconds=0.85, target=0.3, missed=True, psnr=61)
    with gpu._reporting(report, "sd15", "t2i batched"):
        raise RuntimeError("no room")
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == report.records
    assert printed[-1]["failed"] == "RuntimeError: no room"
    *_, missed, failed = report.table().splitlines()
    assert missed == "| sd15 | t2i | 1.8 | **0.85** | 0.3 | 61 |"
    assert failed.startswith("| sd15 | t2i batched | RuntimeError: no room |")


def test_pictures_are_compared() -> None:
    white, grey = (Image.new("RGB", (8, 8), colour) for colour in ("#ffffff", "#fefefe"))
    assert gpu.psnr(white, white.copy()) == 100
    assert gpu.psnr(white, grey) == 48.1
    assert gpu.psnr(None, white) is None


def test_a_budget_leaves_models_out_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--budget", "0", "--models", "sd15,flux-dev"]) == 0
    lines = capsys.readouterr().out.splitlines()
    left_out = [record for record in map(json.loads, lines[:3]) if "skipped" in record]
    assert [record["model"] for record in left_out] == ["sd15", "flux-dev"]


def test_a_model_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--models", "sd16"])
    assert "there is no model sd16; there is sd15, sdxl, klein" in capsys.readouterr().err


def test_what_the_other_machine_has_is_not_taken_along() -> None:
    wanted = gpu_wheels.needed_distributions(["diffusers", "PIL", "torch", "tokenizers", "t2i_cli"])
    assert {"diffusers", "pillow", "tokenizers", "huggingface-hub", "importlib-metadata"} <= set(
        wanted
    )
    assert not {"torch", "numpy", "sympy", "t2i-cli"} & set(wanted)
    # The warm worker is a process of its own, whose imports no probe sees.
    assert {"fastapi", "uvicorn", "starlette"} <= set(wanted)
    cloud = [name for name in wanted if name.startswith(("google", "grpc"))]
    assert set(cloud) <= {"google-crc32c"}
    # Of a namespace that many share, only what was imported.
    shared = gpu_wheels.needed_distributions(["google.auth"])
    assert "google-auth" in shared and "google-cloud-storage" not in shared


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "billions"),
    [("sd15", 0.860), ("sdxl", 2.567), ("klein", 3.876), ("z-image", 6.155), ("flux-dev", 11.901)],
)
def test_the_shapes_are_those_of_the_public_models(name: str, billions: float) -> None:
    """By the number of the denoiser's weights; on a device that holds none of them."""
    import torch

    pipe = gpu_models._BUILDERS[name](torch.device("meta"))
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    assert sum(one.numel() for one in denoiser.parameters()) / 1e9 == pytest.approx(
        billions, abs=0.001
    )
    assert pipe.scheduler is not None


@pytest.mark.full
def test_the_whole_script_runs_on_tiny_models(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--runs", "1"]
    command += [
        "--sides",
        "diffusers,t2i,t2i batched,t2i lossy,cold",
        "--profile",
        "--check",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False
    )
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert not [record for record in records if "failed" in record]
    sides = {(record["model"], record["side"]) for record in records if "side" in record}
    assert {(model.name, "t2i") for model in gpu_models.MODELS} <= sides
    near = [record["psnr"] for record in records if record.get("side") == "t2i"]
    assert len(near) == len(gpu_models.MODELS) and min(near) >= 40
    assert {"check": "tests", "passed": True} in records
    assert (tmp_path / "sd15.json").exists()
