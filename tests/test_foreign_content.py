"""Files and answers that t2i did not write: none is lost, none hangs or crashes it."""

import json
import os
import random
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from t2i_cli.batch import sheet_images
from t2i_cli.batch.lock import lock_folder
from t2i_cli.batch.manifest import MANIFEST_HEADER, Manifest
from t2i_cli.errors import InputError, ModelError, StorageError
from t2i_cli.models import component_check, diffusers_folder, resolution, weights
from t2i_cli.vertex.torchserve import container, model_archive
from t2i_cli.worker.state import RuntimeDir, WorkerUnavailableError
from tests import tiny_models
from tests.conftest import T2I
from tests.factories import picture

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_models.copy_postcard(tmp_path / "model")


def test_only_unfinished_files_are_removed(tmp_path: Path) -> None:
    with lock_folder(tmp_path, None):
        pass
    scratch = tmp_path / ".t2i/unfinished"
    scratch.mkdir()
    (scratch / "precious.txt").write_text("precious")
    with pytest.raises(InputError, match="precious"), lock_folder(tmp_path, None):
        pass
    assert (scratch / "precious.txt").read_text() == "precious"


def test_a_manifest_shared_with_another_folder_is_appended_to_here_alone(tmp_path: Path) -> None:
    copy, own = tmp_path / "copy.jsonl", tmp_path / "manifest.jsonl"
    copy.write_bytes(MANIFEST_HEADER + b'{"half')
    os.link(copy, own)
    manifest = Manifest(own)
    manifest.append([{"status": "failed", "id": "a"}])
    manifest.close()
    assert copy.read_bytes() == MANIFEST_HEADER + b'{"half'
    assert own.read_bytes() == MANIFEST_HEADER + b'{"status": "failed", "id": "a"}\n'


@pytest.mark.parametrize("name", ["worker.lock", "start.lock", "worker.log", "worker.json"])
def test_no_file_with_another_name_is_the_workers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "precious").write_text("precious")
    os.link(tmp_path / "precious", RuntimeDir.find().folder / name)
    with pytest.raises(WorkerUnavailableError, match=name):
        RuntimeDir.find()
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_no_damaged_archive_is_taken_for_own(method: int, tmp_path: Path) -> None:
    whole = tmp_path / "model.mar"
    with zipfile.ZipFile(whole, "w", method) as packed:
        packed.writestr(container.MANIFEST, json.dumps({"model": ["x"] * 50}))
    data = whole.read_bytes()
    for seed in range(400):
        chance, damaged = random.Random(seed), bytearray(data)  # noqa: S311 - no secret
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        whole.write_bytes(damaged)
        assert not model_archive.is_own_archive(whole)


SETTINGS = {
    "deep": "a=" + "[" * 20_000,
    "deeper than tomlkit takes": "a=" + "[" * 300 + "]" * 300,
    "many digits": "model=" + "1" * 5_000,
    "large": "#" * 2**21,
}


@pytest.mark.parametrize("content", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_cannot_be_read_are_a_sentence(content: str, t2i: T2I, home: Path) -> None:
    (home / "t2i.toml").write_text(content)
    done = t2i("config", "set", "model", "postcard")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert (home / "t2i.toml").read_text() == content


@pytest.mark.parametrize("file", ["/dev/zero", "pipe"])
def test_settings_without_end_are_a_sentence(file: str, t2i: T2I, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = t2i("config", "list", env={"T2I_CONFIG": file}, timeout=30)
    assert done.returncode == 11
    assert "it is no regular file" in done.stderr


def test_no_settings_are_read_from_the_null_device(t2i: T2I) -> None:
    assert t2i("config", "list", env={"T2I_CONFIG": os.devnull}).returncode == 0


@pytest.mark.parametrize("body", [b"[]", b"<html>Log in</html>", b'{"sha": 5}', b"[" * 5_000])
def test_a_hub_that_answers_nonsense_is_none(
    body: bytes, answering: Callable[[bytes], int], t2i: T2I
) -> None:
    address = f"http://127.0.0.1:{answering(body)}"
    done = t2i("models", "pull", "someone/model", env={"HF_ENDPOINT": address})
    assert done.returncode == 6, done.stderr
    assert f"What answers at {address} is no Hub" in done.stderr


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], int]]:
    """Start a server that answers everything with the same body; returns its port."""
    listeners: list[socket.socket] = []

    def start(body: bytes) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65_536)
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)

        threading.Thread(target=answer, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"idle": 1e999, "keep_alive": 1, "waiting": 0}', b"[" * 100_000],
    ids=["empty", "infinite", "deep"],
)
def test_a_worker_that_answers_nonsense_is_none(
    body: bytes, answering: Callable[[bytes], int], t2i: T2I, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    place = RuntimeDir(tmp_path / "t2i")
    place.folder.mkdir(mode=0o700)
    state = {"pid": 2**22 + 1, "identity": "x", "version": "1", "model": "m", "secret": "s"}
    with place.lifetime_lock():
        (place.folder / "worker.json").write_text(json.dumps(state | {"port": answering(body)}))
        done = t2i("worker", "status", env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "No worker runs.\n", "")


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_a_lone_surrogate_in_a_state_is_printed_escaped(
    json_option: tuple[str, ...], t2i: T2I, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    place = RuntimeDir(tmp_path / "t2i")
    place.folder.mkdir(mode=0o700)
    state = {"pid": 2**22 + 1, "identity": "x", "version": "1", "model": "m\ud800"}
    with place.lifetime_lock():
        (place.folder / "worker.json").write_text(json.dumps(state))
        done = t2i("worker", "status", *json_option, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "m\\ud800" in done.stdout


@pytest.mark.parametrize("name", ["model_index.json", "tokenizer/tokenizer.json", WEIGHTS])
@pytest.mark.parametrize("device", ["pipe", "/dev/zero"])
def test_a_model_file_without_end_is_refused(name: str, device: str, folder: Path) -> None:
    file = folder / name
    file.unlink()
    os.mkfifo(file) if device == "pipe" else file.symlink_to(device)
    with pytest.raises(ModelError, match="no regular file"):
        resolution.describe_folder(folder, "x", trust_remote_code=False)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
def test_a_folder_in_place_of_a_config_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ModelError, match="it is a folder"):
        resolution.describe_folder(folder, "x", trust_remote_code=False)


@pytest.mark.parametrize(
    "weight_map", [{"a": 5}, {"a": "x", "b": 5}, {"a": [1]}, {"a": ""}, {"a": "../x"}, {"a": "/x"}]
)
def test_an_index_names_files_of_its_folder(weight_map: object, folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "unet/diffusion_pytorch_model-00001-of-00001.safetensors")
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="names no weight files"):
        weights.read_weight_headers(folder, "float32")


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a": {"dtype": "F32", "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": ["a", 3], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1e308], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": {"1": 0}}}',
    ],
)
def test_a_header_of_another_form_is_damaged(header: bytes, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="is damaged"):
        weights.read_weight_headers(folder, "float32")


@pytest.mark.parametrize("value", ["x", ["x"], [[1]], -1, 2**40, {"a": 1}])
@pytest.mark.parametrize("key", ["sample_size", "block_out_channels", "patch_size"])
def test_a_size_that_is_none_is_damaged(key: str, value: object, folder: Path) -> None:
    tiny_models.edit_json(folder / "unet/config.json", **{key: value})
    with pytest.raises(ModelError, match=f"its {key} cannot be"):
        diffusers_folder.component_config(folder, "unet")


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": {"text_config": "someone/kernel"}},
        {"text_config": {"attn_implementation": "someone/kernel"}},
    ],
)
def test_a_kernel_of_the_hub_needs_trust(config: dict[str, object], folder: Path) -> None:
    tiny_models.edit_json(folder / "text_encoder/config.json", **config)
    with pytest.raises(ModelError, match="attention kernel") as refused:
        component_check.check_components(folder, trust_remote_code=False)
    assert "--trust-remote-code" in str(refused.value.hint)
    component_check.check_components(folder, trust_remote_code=True)


def test_weights_that_a_config_asks_for_in_vain_are_a_damaged_model(
    folder: Path, t2i: T2I, tmp_path: Path
) -> None:
    tiny_models.edit_json(folder / "unet/config.json", time_cond_proj_dim=1)
    done = t2i("generate", "x", "-m", folder, "--steps", "1", "-o", tmp_path / "x.png")
    assert (done.returncode, "Traceback" in done.stderr) == (9, False), done.stderr


def test_a_contact_sheet_opens_no_format_that_t2i_does_not_write(tmp_path: Path) -> None:
    """Pillow starts another program for EPS."""
    picture(64, 64).save(tmp_path / "a.eps")
    with (
        pytest.raises(StorageError, match="Cannot read"),
        sheet_images.open_batch_image(tmp_path / "a.eps", 192),
    ):
        pass
