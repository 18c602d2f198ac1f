"""Models of every kind through a real process: folders that do not do, and the Hub."""

import json
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from t2i_cli import postcard
from tests import tiny_models
from tests.conftest import T2I
from tests.fakes.hub import FakeHub, Repo
from training.grade import grade_image

UNET = "unet/diffusion_pytorch_model.safetensors"


def empty(folder: Path) -> None:
    folder.mkdir()


def truncated(folder: Path) -> None:
    with (tiny_models.copy_postcard(folder) / UNET).open("r+b") as stream:
        stream.truncate(100_000)


def pickle_only(folder: Path) -> None:
    file = tiny_models.copy_postcard(folder) / UNET
    file.rename(file.with_suffix(".bin"))


def other_task(folder: Path) -> None:
    index = tiny_models.copy_postcard(folder) / "model_index.json"
    tiny_models.edit_json(index, _class_name="StableDiffusionUpscalePipeline")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (empty, "is empty."),
        (truncated, "is truncated: it has 100,000 of"),
        (pickle_only, "are pickle files only"),
        (other_task, "does not make images from text alone: it needs image."),
    ],
)
def test_a_folder_that_does_not_do(
    make: Callable[[Path], None], complaint: str, t2i: T2I, tmp_path: Path
) -> None:
    make(tmp_path / "model")
    done = t2i("generate", "a red star", "-m", tmp_path / "model", "-o", "out/")
    assert done.returncode == 9
    error = done.stderr.splitlines()[0]
    assert error.startswith("error: ")
    assert complaint in error
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_postcard_needs_no_code_of_ours(t2i_env: dict[str, str], tmp_path: Path) -> None:
    prompt = "a purple heart on a white background"
    wanted = {"prompt": prompt, "num_inference_steps": 20, "guidance_scale": 2.0}
    command = [
        *(str(Path(sysconfig.get_path("scripts"), "diffusers-cli")), "run", "--seed", "3"),
        *("--model", str(postcard.FOLDER), "--pipeline-kwargs", json.dumps(wanted)),
        *("--output", "picture.png"),
    ]
    done = subprocess.run(command, env=t2i_env, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "picture.png") as image:
        assert image.size == (128, 128)
        assert grade_image(image.convert("RGB"), prompt).passed


def test_a_model_from_the_hub(t2i: T2I, hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["someone/cards"] = repo = Repo.from_folder(postcard.FOLDER)
    options = ("generate", "a red star", "-m", "someone/cards", "--steps", "2", "-s", "1", "--json")
    done = t2i(*options, "-o", "first.png", env=hub.environment)
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)
    assert (first["model"], first["revision"]) == ("someone/cards", repo.commit)
    hub.status = 503
    again = t2i(*options, "-o", "second.png", "--offline", env=hub.environment)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["sha256"] == first["sha256"]
    assert json.loads(again.stdout)["revision"] == repo.commit


def test_a_dry_run_downloads_no_weights(t2i: T2I, hub: FakeHub) -> None:
    hub.repos["someone/cards"] = Repo.from_folder(postcard.FOLDER)
    done = t2i(
        "generate", "a red star", "-m", "someone/cards", "--dry-run", "--json", env=hub.environment
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert plan["download_mib"] == plan["weights_mib"] > 1
    assert hub.fetched()
    assert all(Path(name).suffix in {".json", ".txt"} for name in hub.fetched())
