"""What is never to change: files of earlier versions are read, and what the tool is for works.

Each by a real process. `tests/golden/README.md` says what lies in the folders and what made it.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image

from t2i_cli import postcard
from tests.conftest import T2I
from tests.fakes.hub import FakeHub, Repo
from tests.fakes.images_server import running_images
from tests.fakes.vertex import FakeVertex
from training.grade import grade_image

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
PROMPT = "a purple heart on a white background"
SETTINGS = {
    "model": "postcard",
    "backend": "local",
    "device": "cpu",
    "dtype": "float32",
    "memory": "low",
    "keep_alive": "1h30m",
    "format": "webp",
    "output": "pictures/{index:02d}-{seed}.{ext}",
    "retries": "7",
    "timeout": "120.5",
    "concurrency": "3",
    "http_url": "http://gpu-box:7860/v1",
    "http_dialect": "sglang",
    "http_api_key": "********",
    "vertex_endpoint": "projects/gallery/locations/europe-west4/endpoints/1234567890",
    "vertex_project": "gallery",
    "vertex_region": "europe-west4",
    "vertex_api_endpoint": "https://europe-west4-aiplatform.googleapis.com",
    "vertex_image": "us-central1-docker.pkg.dev/gallery/images/t2i:1",
    "vertex_bucket": "a-bucket-of-weights",
    "vertex_prices": "prices.toml",
}
"""As `t2i config list` prints the golden file's."""
WORDS = "first line\nSteps: 9, Seed: 3, «é», 日本 🏠"
IMAGES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "star.png": ({"seed": 7, "steps": 2}, {"backend": "local", "dtype": "float32"}),
    "words.png": (
        {"prompt": WORDS, "negative_prompt": "rain, Steps: 4", "seed": 0, "guidance_scale": 4.25}
        | {"width": 96, "height": 64, "scheduler": "dpm++2m-karras"},
        {"scheduler": "DPMSolverMultistepScheduler"},
    ),
    "house.jpg": ({"seed": 4294967295}, {"measures": ["attention-slicing"]}),
    "heart.webp": ({"seed": 11}, {"dtype": "bfloat16", "measures": ["vae-tiling"]}),
    "http.png": (
        {"model": "painter", "seed": 5, "steps": None},
        {"backend": "http", "seed_confirmed": False},
    ),
    "vertex.jpg": (
        {"model": "stabilityai/stable-diffusion-xl-base-1.0", "width": 1024},
        {"backend": "vertex", "deployed_model": "1795701552"},
    ),
}
"""Some of what images made by `generate` say: of the request, and of the run."""


@dataclass(frozen=True)
class Batch:
    """A golden folder: the options that made it, and the exit code when nothing is left to do."""

    folder: str
    prompts: str
    options: tuple[str, ...]
    code: int = 0


TXT = Batch(
    "txt",
    "prompts.txt",
    ("-m", "postcard", "--vary", "steps=2,3", "--negative-prompt", "rain", "--format", "webp"),
)
JSONL = Batch(
    "jsonl",
    "prompts.jsonl",
    ("-m", "postcard", "--skip-invalid", "--name", "{index:03d}-{id}.{ext}", "--format", "jpeg"),
    code=8,
)
MERGED = Batch("merged", "prompts.csv", ("-m", "postcard", "--format", "webp"))
SHARDS = Batch("shards", "prompts.csv", ("-m", "postcard", "--format", "webp", "--shard", "1/2"))
HUB = Batch("hub", "hub.jsonl", ("--size", "128x128", "--steps", "2", "--guidance", "2"), code=8)
HTTP = Batch(
    "http",
    "http.txt",
    ("--backend", "http", "--dialect", "openai", "-m", "painter", "--size", "64x64"),
    code=8,
)
FOLDERS = (TXT, JSONL, MERGED, SHARDS, HUB, HTTP)


# What of the program is called by its own names is called here alone.


def ids(batch: Batch) -> list[str]:
    """The ids of a prompts file's rows for the embedded model, as the program has them now."""
    from t2i_cli.batch.options import BatchOptions, parse_vary
    from t2i_cli.batch.rows import expand_rows
    from t2i_cli.prompts import prompts_format, read_prompts
    from tests.fakes.stub_backend import StubBackend

    given = dict(zip(batch.options[::2], batch.options[1::2], strict=False))
    defaults = {"model": "postcard"}
    if negative := given.get("--negative-prompt"):
        defaults["negative_prompt"] = negative
    vary = parse_vary([given["--vary"]] if "--vary" in given else [])
    source = str(GOLDEN / batch.prompts)
    entries = read_prompts(source, prompts_format(source, None)).entries
    rows, _ = expand_rows(entries, BatchOptions(defaults=defaults, vary=vary), StubBackend())
    return [row.id for row in rows]


def worker_state(folder: Path) -> dict[str, object]:
    """What the program reads of a worker in its folder."""
    from t2i_cli.worker.state import RuntimeDir

    state = RuntimeDir(folder).state()
    assert state
    return dict(vars(state))


# Files of earlier versions.


def lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def rows_of(batch: Batch) -> list[dict[str, Any]]:
    """The lines of images in a golden folder's manifests, in the order of the prompts."""
    found = [
        line
        for file in (GOLDEN / batch.folder).glob("manifest*.jsonl")
        for line in lines(file)
        if "id" in line
    ]
    return sorted(found, key=lambda line: int(line["index"]))


@pytest.fixture
def resumed(t2i: T2I, tmp_path: Path) -> Path:
    """Copies of the golden prompts and folders, in which `t2i` runs."""
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    return tmp_path


def resume(t2i: T2I, batch: Batch, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run the command again that made a folder; its account."""
    done = t2i(
        *("batch", batch.prompts, "-o", batch.folder, *batch.options, "--json"), env=env or {}
    )
    assert done.returncode == batch.code, done.stderr
    account: dict[str, Any] = json.loads(done.stdout)
    assert (account["made"], account["left"]) == (0, 0)
    return account


def assert_kept(folder: Path, batch: Batch) -> None:
    """Every manifest and image of the folder is as it was; no line of an image has come to them."""
    old = GOLDEN / batch.folder
    for file in (path for path in old.rglob("*") if path.is_file() and path.suffix != ".html"):
        now = (folder / batch.folder / file.relative_to(old)).read_bytes()
        assert now.startswith(file.read_bytes()), file.name
        added = now[file.stat().st_size :].splitlines()
        assert not any("id" in json.loads(line) for line in added)
    images = {path.name for path in old.rglob("*") if path.suffix in {".png", ".jpg", ".webp"}}
    here = (folder / batch.folder).rglob("*")
    assert {path.name for path in here if path.suffix in {".png", ".jpg", ".webp"}} == images


@pytest.mark.parametrize("batch", [TXT, JSONL, MERGED], ids=lambda batch: batch.folder)
def test_ids_are_those_of_the_manifest(batch: Batch) -> None:
    recorded = rows_of(batch)
    assert len(recorded) >= 4
    assert ids(batch) == [line["id"] for line in recorded]


@pytest.mark.parametrize(
    ("batch", "done"), [(TXT, 8), (JSONL, 5), (MERGED, 4)], ids=["txt", "jsonl", "merged"]
)
def test_a_folder_is_resumed_with_nothing_to_do(
    t2i: T2I, resumed: Path, batch: Batch, done: int
) -> None:
    assert resume(t2i, batch)["done"] == done
    assert_kept(resumed, batch)


def test_shards_are_resumed_and_merged(t2i: T2I, resumed: Path) -> None:
    assert resume(t2i, SHARDS)["done"] == 3
    assert_kept(resumed, SHARDS)
    assert t2i("batch", "--merge", "shards").returncode == 0
    assert lines(resumed / "shards/manifest.jsonl") == lines(GOLDEN / "merged/manifest.jsonl")


def test_a_folder_of_models_from_the_hub_stays_at_their_commits(
    t2i: T2I, hub: FakeHub, resumed: Path
) -> None:
    for name in ("golden/postcard", "golden/checked"):
        hub.repos[name] = Repo.from_folder(postcard.FOLDER)
        hub.repos[name].files["README.md"] = b"a new commit"
    account = resume(t2i, HUB, hub.environment)
    assert (account["done"], account["withheld"]) == (1, 1)
    assert_kept(resumed, HUB)
    assert not any(name.endswith(".safetensors") for name in hub.fetched())


def test_a_folder_of_a_server_s_images_keeps_its_failures(t2i: T2I, resumed: Path) -> None:
    with running_images() as server:
        account = resume(t2i, HTTP, {"T2I_HTTP_URL": server.url})
        assert server.asked == []
    assert (account["done"], account["withheld"], account["failed"]) == (1, 1, 1)
    assert_kept(resumed, HTTP)


def test_every_image_says_what_made_it(t2i: T2I, resumed: Path) -> None:
    expected = {f"images/{name}": parts for name, parts in IMAGES.items()}
    for batch in FOLDERS:
        for line in rows_of(batch):
            if line["status"] == "done":
                expected[f"{batch.folder}/{line['file']}"] = (line["request"], line["lock"])
    done = t2i("inspect", "--json", *expected)
    assert done.returncode == 0, done.stderr
    records = {record["path"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert records.keys() == expected.keys()
    for path, (request, lock) in expected.items():
        record = records[path]
        assert record["source"] == "t2i"
        assert request.items() <= record["request"].items(), path
        assert {name: record["lock"][name] for name in lock} == lock, path
        # What others read of it, too.
        assert record["parameters"]["Seed"] == str(record["request"]["seed"])
    assert "Steps: 9, Seed: 3" in t2i("inspect", "images/words.png").stdout


def test_every_setting_of_the_file_holds(t2i: T2I, tmp_path: Path) -> None:
    file = tmp_path / "t2i.toml"
    shutil.copy(GOLDEN / "t2i.toml", file)
    done = t2i("config", "list", "--json", env={"T2I_CONFIG": str(file)})
    assert done.returncode == 0, done.stderr
    found = {line["key"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert {key: found[key]["value"] for key in SETTINGS} == SETTINGS
    assert {found[key]["source"] for key in SETTINGS} == {str(file)}
    # A key changed leaves the comment and the others.
    assert t2i("config", "set", "steps", "3", env={"T2I_CONFIG": str(file)}).returncode == 2
    assert t2i("config", "set", "memory", "fast", env={"T2I_CONFIG": str(file)}).returncode == 0
    old = (GOLDEN / "t2i.toml").read_text()
    assert file.read_text() == old.replace('memory = "low"', 'memory = "fast"')


def test_timings_make_an_estimate(t2i: T2I, home: Path, resumed: Path) -> None:
    cache = home / ".cache/t2i"
    cache.mkdir(parents=True)
    shutil.copy(GOLDEN / "timings.json", cache)
    again = ("batch", TXT.prompts, "-o", TXT.folder, *TXT.options, "--force", "--dry-run", "--json")
    plan = json.loads(t2i(*again).stdout)
    assert plan["to_make"] == 8
    # 8 images of 128 by 128 pixels with 2 or 3 steps, at 6 seconds a megapixel and step.
    assert 1 < plan["estimated_seconds"] < 4


def test_the_endpoint_in_use_is_remembered(t2i: T2I, home: Path, vertex: FakeVertex) -> None:
    state = home / ".local/state/t2i"
    state.mkdir(parents=True)
    shutil.copy(GOLDEN / "vertex.json", state)
    plan = t2i(
        *("generate", "x", "--backend", "vertex", "--dry-run", "--json"), env=vertex.environment
    )
    assert plan.returncode == 0, plan.stderr
    told = json.loads(plan.stdout)
    assert told["plan"]["endpoint"] == "projects/gallery/locations/us-central1/endpoints/1009"
    assert told["requests"][0]["model"] == "stabilityai/stable-diffusion-xl-base-1.0"


def test_a_worker_s_state_is_read(tmp_path: Path) -> None:
    said = json.loads((GOLDEN / "worker.json").read_text())
    # It listened in its own folder, which is this one here.
    said["socket"] = str(tmp_path / "worker.sock")
    (tmp_path / "worker.json").write_text(json.dumps(said))
    assert said.items() <= worker_state(tmp_path).items()


def test_events_are_those_of_the_schema() -> None:
    schema = json.loads((ROOT / "docs/events.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    events = lines(GOLDEN / "events.ndjson")
    for event in events:
        validator.validate(event)
    assert Counter(event["event"] for event in events)["image"] == 8


# What the tool is for.


def test_login_with_a_token(t2i: T2I, home: Path, hub: FakeHub) -> None:
    hub.users["hf_goodgoodgood"] = "ann"
    done = t2i("login", "--token-stdin", input="hf_goodgoodgood\n", env=hub.environment)
    assert done.returncode == 0, done.stderr
    assert (home / "hf/token").read_text() == "hf_goodgoodgood"
    assert t2i("login", "--status", env=hub.environment).stdout.startswith("ann,")


def on_fake_gpu(
    env: Mapping[str, str], folder: Path, *args: str
) -> tuple[Counter[str], subprocess.CompletedProcess[str]]:
    """What torch and diffusers were told to do by `t2i` on the fake GPU."""
    log = folder / "calls"
    log.write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fakes.gpu_process", str(log), *args],
        env={**env, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Counter(log.read_text().split()), done


def test_attention_slicing_and_an_emptied_cache(t2i_env: dict[str, str], tmp_path: Path) -> None:
    def made(name: str, *flags: str) -> tuple[Counter[str], list[str]]:
        model = ("-m", "postcard", "--dtype", "float32", "-s", "3", "-n", "2", "--json")
        alone = ("--batch-size", "1")
        target = ("-o", f"{name}-{{index}}.png")
        calls, done = on_fake_gpu(
            t2i_env, tmp_path, "generate", PROMPT, *model, *alone, *target, *flags
        )
        first, second = map(json.loads, done.stdout.splitlines())
        assert first["measures"] == second["measures"]
        with Image.open(tmp_path / f"{name}-1.png") as image:
            assert grade_image(image.convert("RGB"), PROMPT).passed
            assert json.loads(image.info["t2i"])["lock"]["measures"] == first["measures"]
        return calls, first["measures"]

    plain, measures = made("plain")
    assert (measures, plain["SlicedAttnProcessor"]) == ([], 0)
    asked, measures = made("asked", "--attention-slicing", "--clear-cache")
    assert measures == ["attention-slicing"]
    # What the denoiser computed whole it computes in slices; the VAE cannot.
    assert asked["SlicedAttnProcessor"] > 100
    assert asked.total() - asked["empty_cache"] == plain["AttnProcessor2_0"]
    assert asked["AttnProcessor2_0"] < plain["AttnProcessor2_0"] / 10
    # Once after each pass, here of an image, beside what is emptied when the model is dropped.
    assert asked["empty_cache"] == plain["empty_cache"] + 2


def test_a_batch_from_a_file(t2i: T2I, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\na red star on a white background\n")
    done = t2i("batch", "prompts.txt", "-m", "postcard", "-o", "out", "--seed", "3")
    assert done.returncode == 0, done.stderr
    for path, prompt in zip(sorted(done.stdout.split()), [PROMPT, "a red star"], strict=True):
        with Image.open(tmp_path / path) as image:
            grade = grade_image(image.convert("RGB"), prompt)
            assert grade.checks["colour"], grade.seen
    manifest = lines(tmp_path / "out/manifest.jsonl")
    assert [line["status"] for line in manifest if "id" in line] == ["done", "done"]


def test_an_image_from_vertex_ai(t2i: T2I, vertex: FakeVertex, tmp_path: Path) -> None:
    endpoint = vertex.make_endpoint(labels={"managed-by": "t2i", "t2i-serving": "t2i"})
    env = vertex.environment | {"T2I_VERTEX_ENDPOINT": endpoint}
    done = t2i("remote", "generate", PROMPT, "-s", "3", "-o", "far.png", "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert vertex.predictions[-1]["instances"][0]["prompt"] == PROMPT
    with Image.open(tmp_path / "far.png") as image:
        record = json.loads(image.info["t2i"])
    assert (record["request"]["seed"], record["lock"]["endpoint"]) == (3, endpoint)
