"""`model.mar`: what lies in it, what its handler takes, and a real TorchServe that runs it."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from PIL import Image

from t2i_cli.errors import InputError
from t2i_cli.models import catalog
from t2i_cli.vertex import containers
from t2i_cli.vertex.torchserve import container, handler, model_archive
from tests.conftest import T2I
from tests.fakes.vertex import FakeVertex
from training.grade import grade_image

ROOT = Path(__file__).parent.parent
TORCHSERVE = Path(os.environ.get("T2I_TORCHSERVE", ROOT / ".venv-torchserve")) / "bin/torchserve"
PROMPT = "a red star on a white background"


def archive(folder: Path, *, overwrite: bool = False) -> Path:
    """postcard's."""
    source = containers.find_source("postcard", "model-garden")
    weights = containers.local_weights(source, dtype="float32")
    return model_archive.write_archive(
        source, weights, folder, lambda *_: None, overwrite=overwrite
    )


def test_the_archive(t2i: T2I, tmp_path: Path) -> None:
    done = t2i("remote", "package", "-m", "postcard", "-o", tmp_path / "mar")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'mar' / 'model.mar'}\n"
    assert "14 January 2027" in done.stderr
    file = Path(done.stdout.strip())
    with zipfile.ZipFile(file) as archived:
        names = set(archived.namelist())
        assert json.loads(archived.read(container.MANIFEST))["model"]["handler"] == "handler.py"
        assert archived.read("handler.py") == model_archive.HANDLER.read_bytes()
        weights = catalog.MODELS["postcard"].folder or Path()
        for path in weights.rglob("*.safetensors"):
            name = f"weights/{path.relative_to(weights).as_posix()}"
            assert archived.read(name) == path.read_bytes()
    assert "requirements.txt" in names
    assert archive(tmp_path / "again").read_bytes() == file.read_bytes()
    found = containers.find_source(str(file.parent), "torchserve")
    assert found.spec.name == "postcard"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.mar").write_text("no zip")
    with pytest.raises(InputError, match="no archive"):
        containers.find_source(str(broken), "torchserve")


def test_anothers_archive_stays(t2i: T2I, tmp_path: Path) -> None:
    own = archive(tmp_path)
    untouched = own.stat()
    again = t2i("remote", "package", "-m", "postcard", "-o", tmp_path)
    assert again.returncode == 2
    assert again.stderr.endswith(
        f"error: '{own}' is there already.\n"
        "hint: --overwrite replaces it; -o names another folder.\n"
    )
    after = own.stat()
    assert (after.st_ino, after.st_mtime_ns) == (untouched.st_ino, untouched.st_mtime_ns)
    assert archive(tmp_path, overwrite=True) == own
    assert own.stat().st_ino != untouched.st_ino
    with zipfile.ZipFile(own, "w") as others:
        manifest = {"model": {"modelName": "mine", "handler": "handler.py"}}
        others.writestr(container.MANIFEST, json.dumps(manifest))
    for plant in (lambda: None, lambda: own.write_text("precious"), lambda: own.write_bytes(b"")):
        plant()
        before = own.read_bytes()
        with pytest.raises(InputError, match="is there, and none that t2i packed"):
            archive(tmp_path, overwrite=True)
        assert own.read_bytes() == before
    done = t2i("remote", "package", "-m", "postcard", "-o", tmp_path, "--overwrite")
    assert done.returncode == 2
    assert "none that t2i packed" in done.stderr


def test_the_archive_is_deployed(t2i: T2I, vertex: FakeVertex, tmp_path: Path) -> None:
    archive(tmp_path / "mar")
    done = t2i(
        "remote", "deploy", "--serving", "torchserve", "-m", tmp_path / "mar", "--yes",
        env=vertex.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning: Google withdraws its PyTorch containers on 14 January 2027." in done.stderr
    (model,) = vertex.models.values()
    uri = "gs://t2i-gallery-us-central1/t2i/postcard"
    assert model["artifactUri"] == uri
    assert "/pytorch-cpu." in model["containerSpec"]["imageUri"]
    names = [name for _, name in vertex.objects if name.startswith("t2i/postcard/")]
    assert names == ["t2i/postcard/model.mar"]


def test_what_the_handler_takes() -> None:
    arguments, format = handler.parse_instance(
        {
            "prompt": "a",
            "text": "a",
            "seed": "4294967295",
            "num_inference_steps": 3.0,
            "width": 64.0,
        }
    )
    assert arguments == {"prompt": "a", "seed": 4294967295, "num_inference_steps": 3, "width": 64}
    assert format == "jpeg"
    drawn, format = handler.parse_instance({"text": "b", "format": "png", "negative_prompt": "c"})
    assert 0 <= drawn["seed"] < 2**32
    assert drawn["negative_prompt"] == "c"
    for none in (-1.0, "-1"):
        drawn, _ = handler.parse_instance({"text": "b", "seed": none})
        assert 0 <= drawn["seed"] < 2**32
    assert format == "png"


@pytest.mark.parametrize(
    "instance",
    [
        {},
        {"prompt": " "},
        {"prompt": "a", "scheduler": "euler"},
        {"prompt": "a", "steps": "many"},
        {"prompt": "a", "steps": 2.5},
        {"prompt": "a", "width": float("inf")},
        {"prompt": "a", "format": "gif"},
        "a",
    ],
)
def test_what_the_handler_refuses(instance: Any) -> None:  # noqa: ANN401 - any JSON
    (answer,) = handler.Handler().handle([instance], None)
    assert answer["error"]["code"] == "bad_input"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_handler_paints(tmp_path: Path) -> None:
    with zipfile.ZipFile(archive(tmp_path)) as archived:
        archived.extractall(tmp_path / "model")
    service = handler.Handler()
    service.initialize(SimpleNamespace(system_properties={"model_dir": str(tmp_path / "model")}))
    instance = {"prompt": PROMPT, "seed": 1.0, "steps": 2.0, "format": "png"}
    one, other, wrong = service.handle([instance, instance, {"prompt": ""}], None)
    assert one["image"] == other["image"]
    assert one["t2i"]["request"]["seed"] == 1
    assert one["t2i"]["lock"]["pipeline"] == "StableDiffusionPipeline"
    assert "error" in wrong
    assert Image.open(io.BytesIO(base64.b64decode(one["image"]))).size == (128, 128)


@contextmanager
def torchserve(store: Path, t2i_env: dict[str, str]) -> Iterator[str]:
    """A TorchServe with the archive; the address of its predictions."""
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        ports = [a.getsockname()[1], b.getsockname()[1]]
    addresses = [f"http://127.0.0.1:{port}" for port in ports]
    (store / "config.properties").write_text(
        f"inference_address={addresses[0]}\nmanagement_address={addresses[1]}\n"
        "metrics_mode=log\nenable_metrics_api=false\nservice_envelope=json\n"
        "disable_token_authorization=true\ndefault_workers_per_model=1\n"
        "default_response_timeout=600\ndefault_startup_timeout=600\n"
        "max_request_size=100000000\nmax_response_size=100000000\n"
    )
    config = str(store / "config.properties")
    command = [str(TORCHSERVE), "--foreground", "--model-store", str(store)]
    command += ["--models", "model=model.mar", "--ts-config", config, "--disable-token-auth"]
    path = os.pathsep.join([str(TORCHSERVE.parent), t2i_env["PATH"]])
    with (store / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            env=t2i_env
            | {"PATH": path, "LOG_LOCATION": str(store), "METRICS_LOCATION": str(store)},
            cwd=store,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield f"{addresses[0]}/predictions/model"
        finally:
            # The Python wrapper and the Java process are both to be ended.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.torchserve
@pytest.mark.skipif(
    not (shutil.which("java") and TORCHSERVE.exists()),
    reason="needs Java 17 and TorchServe in .venv-torchserve",
)
def test_a_real_torchserve(
    t2i: T2I, vertex: FakeVertex, t2i_env: dict[str, str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    archive(store)
    with torchserve(store, t2i_env) as url:

        def predict(body: dict[str, Any]) -> tuple[int, Any]:
            answer = httpx2.post(url, json=body, timeout=600)
            return answer.status_code, answer.json()

        end = time.monotonic() + 400
        first = {"instances": [{"prompt": PROMPT, "steps": 1}]}
        status = 0
        while status != 200:
            assert time.monotonic() < end, (store / "log").read_text()[-3000:]
            time.sleep(1)
            try:
                status, _ = predict(first)
            except httpx2.TransportError:
                continue
        vertex.predictor = predict
        endpoint = vertex.make_endpoint(
            labels={"managed-by": "t2i", "t2i-serving": "torchserve", "t2i-model": "postcard"}
        )
        env = vertex.environment | {"T2I_VERTEX_ENDPOINT": endpoint}
        done = t2i("remote", "generate", PROMPT, "-s", "3", "--json", env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["seed_confirmed"] is True
    with Image.open(tmp_path / made["path"]) as image:
        grade = grade_image(image.convert("RGB"), PROMPT)
    assert grade.checks["colour"], grade.seen
    assert grade.checks["background"], grade.seen
