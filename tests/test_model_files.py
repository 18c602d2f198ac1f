"""`t2i models show FILE` and `t2i models convert` as processes, and the reader of pickles."""

import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t2i_cli import __version__
from t2i_cli.errors import InputError, ModelError, StorageError
from t2i_cli.models import pickle_conversion, pickle_reader
from t2i_cli.models.checkpoint_file import read_checkpoint
from tests.conftest import T2I
from tests.fakes.checkpoint_files import write_header
from tests.fakes.checkpoint_layouts import LAYOUTS

_TARGET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
_LORA = {f"{_TARGET}.lora_down.weight": (8, 2048), f"{_TARGET}.lora_up.weight": (640, 8)}


class _Malicious:
    """An object whose loading creates a file."""

    def __init__(self, created: Path) -> None:
        self.created = created

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.created}",)


def test_show_tells_a_lora_and_its_hashes(t2i: T2I, tmp_path: Path) -> None:
    file = write_header(
        tmp_path / "x.safetensors",
        _LORA,
        metadata={
            "modelspec.trigger_phrase": "snow\x1b[2J",
            "ss_tag_frequency": '{"1_a": {"snowy hill": 7}}',
            "ss_base_model_version": "sdxl_base_v1-0",
        },
    )
    shown = t2i("models", "show", file)
    assert shown.returncode == 0
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    lines = dict(line.split(": ", 1) for line in shown.stdout.splitlines())
    assert lines["kind"] == "lora"
    assert lines["model"] == "Stable Diffusion XL"
    assert (lines["rank"], lines["modules"], lines["adapter format"]) == ("8", "1", "kohya")
    assert lines["trigger phrase"] == r"snow\u001b[2J"
    assert lines["frequent tags"] == "snowy hill (7)"
    assert lines["base model"] == "sdxl_base_v1-0"
    assert (lines["autov2"], lines["sha256"]) == (digest[:10], digest)
    assert lines["text to image"] == "no"


def test_show_tells_a_checkpoint_as_json(t2i: T2I, tmp_path: Path) -> None:
    file = write_header(tmp_path / "x.safetensors", LAYOUTS["sd15 unet"].shapes)
    record = json.loads(t2i("models", "show", file, "--json").stdout)
    assert (record["kind"], record["family"], record["text_to_image"]) == ("unet", "sd15", True)
    assert record["parts"] == ["unet"]
    assert list(record["dtypes"]) == ["float16"]
    assert record["size_bytes"] == file.stat().st_size


def test_show_of_no_file_and_of_a_pickle_is_one_sentence(t2i: T2I, tmp_path: Path) -> None:
    missing = t2i("models", "show", tmp_path / "none.safetensors")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "There is no file" in missing.stderr
    file = tmp_path / "model.safetensors"
    torch.save({"a": torch.ones(1)}, tmp_path / "model.ckpt")
    shutil.copy(tmp_path / "model.ckpt", file)
    shown = t2i("models", "show", file)
    assert shown.returncode == 9
    assert "is a pickle file under another name" in shown.stderr
    assert "t2i models convert" in shown.stderr


def test_convert_writes_the_tensors_and_tells_what_it_left_out(t2i: T2I, tmp_path: Path) -> None:
    weights = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4).half()}
    source = tmp_path / "model.ckpt"
    torch.save({"state_dict": weights | {"n": 3}, "epoch": 1, "optimizer_states": [{}]}, source)
    done = t2i("models", "convert", source)
    target = tmp_path / "model.safetensors"
    assert (done.returncode, done.stdout) == (0, f"{target}\n")
    assert "no tensor: epoch, optimizer_states, n." in done.stderr
    loaded = load_file(target)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    metadata = read_checkpoint(target).metadata
    assert metadata["converted_from_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert metadata["converted_by"] == f"t2i {__version__}"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "model.ckpt",
        "model.safetensors",
    ]


def test_malicious_pickle_under_another_name_runs_nothing(t2i: T2I, tmp_path: Path) -> None:
    created = tmp_path / "created"
    source = tmp_path / "model.safetensors"
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": _Malicious(created)}, tmp_path / "m.pt")
    (tmp_path / "m.pt").rename(source)
    done = t2i("models", "convert", source, env={"HF_TOKEN": "hf_secretsecret"})
    assert done.returncode == 9
    assert "would call posix.system when loaded" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not created.exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.safetensors"]


def test_convert_overwrites_nothing_and_needs_a_pickle(tmp_path: Path) -> None:
    source = tmp_path / "model.ckpt"
    torch.save({"a": torch.ones(1)}, source)
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(InputError, match="exists, and is not overwritten"):
        pickle_conversion.convert_pickle(source, None)
    assert (tmp_path / "model.safetensors").read_text() == "mine"
    with pytest.raises(InputError, match="does not end in .safetensors"):
        pickle_conversion.convert_pickle(source, tmp_path / "x.bin")
    safe = write_header(tmp_path / "x.safetensors", _LORA)
    with pytest.raises(InputError, match="is a safetensors file, which needs no conversion"):
        pickle_conversion.convert_pickle(safe, tmp_path / "y.safetensors")
    with pytest.raises(InputError, match="There is no file"):
        pickle_conversion.convert_pickle(tmp_path / "none.ckpt", None)


def test_a_failed_conversion_leaves_no_folder_and_tells_why(tmp_path: Path) -> None:
    source = tmp_path / "model.ckpt"
    torch.save({"a": _Malicious(tmp_path / "created")}, source)
    with pytest.raises(ModelError, match="would call"):
        pickle_conversion.convert_pickle(source, tmp_path / "new/deep/x.safetensors")
    with pytest.raises(StorageError, match="Not a directory"):
        pickle_conversion.convert_pickle(source, source / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def test_a_file_that_the_disk_does_not_take_is_told_as_that(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    source = tmp_path / "model.ckpt"
    torch.save({"a": torch.ones(100_000)}, source)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        report = pickle_reader.convert_file(source, tmp_path / "x.safetensors", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert report == {"error": os.strerror(errno.EFBIG), "storage": True}


def test_the_reader_of_a_killed_command_removes_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / ".t2i-folder"
    folder.mkdir()
    os.mkfifo(folder / "weights.pt")
    files = [str(folder / "weights.pt"), str(folder / "x.safetensors")]
    # It waits for the other end of the pipe when its standard input, the parent's, ends.
    done = subprocess.run(
        [sys.executable, "-m", "t2i_cli.models.pickle_reader", *files, "{}"],
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stored", "tensors", "left_out"),
    [
        ({"a": torch.ones(2)}, {"a"}, {}),
        ({"model": {"a": torch.ones(2)}, "args": None}, {"a"}, {"args": "NoneType"}),
        ({"params_ema": {"a": torch.ones(2)}}, {"a"}, {}),
        ({"module": {"state_dict": {"a": torch.ones(2)}, "n": 1}}, {"a"}, {"n": "int"}),
        (
            {"string_to_param": {"*": torch.ones(2, 768)}, "name": "x"},
            {"emb_params"},
            {"name": "str"},
        ),
        ({"<cat-toy>": torch.ones(768)}, {"<cat-toy>"}, {}),
        ({"a": torch.ones(2), 5: torch.ones(1)}, {"a"}, {"a int": "Tensor"}),
        ({"a": torch.ones(2), "s": torch.eye(2).to_sparse()}, {"a"}, {"s": "Tensor"}),
    ],
)
def test_weights_are_found_where_trainers_keep_them(
    tmp_path: Path, stored: dict[object, object], tensors: set[str], left_out: dict[str, str]
) -> None:
    source = tmp_path / "x.pt"
    torch.save(stored, source)
    found, others = pickle_reader.read_tensors(source)
    assert (set(found), others) == (tensors, left_out)


def test_tensors_of_one_memory_become_two(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    torch.save({"a": shared, "b": shared, "c": shared[1:], "d": shared.reshape(2, 2).T}, "x.pt")
    source = Path("x.pt")
    report = pickle_reader.convert_file(source, tmp_path / "x.safetensors", {"format": "pt"})
    source.unlink()
    assert report == {"tensors": 4, "left_out": {}}
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded["c"].tolist() == [1, 2, 3]
    assert loaded["d"].tolist() == [[0, 2], [1, 3]]


def test_old_format_and_trainers_objects_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a", _use_new_zipfile_serialization=False)
    assert set(pickle_reader.read_tensors(tmp_path / "a")[0]) == {"a"}
    # What PyTorch Lightning leaves beside the weights, whose class is not there when it is read.
    callback = type("Namespace", (), {"__module__": "argparse"})
    monkeypatch.setattr("argparse.Namespace", callback)
    torch.save({"state_dict": {"a": torch.ones(2)}, "hyper_parameters": callback()}, tmp_path / "b")
    found, left_out = pickle_reader.read_tensors(tmp_path / "b")
    assert (set(found), left_out) == ({"a"}, {"hyper_parameters": "Namespace"})


@pytest.mark.parametrize("kind", ["junk", "pickle", "module", "list", "empty", "truncated"])
def test_what_holds_no_weights_is_told(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "x.pt"
    if kind == "junk":
        source.write_bytes(b"junk" * 99)
    elif kind == "pickle":
        source.write_bytes(pickle.dumps(_Malicious(tmp_path / "created")))
    elif kind == "module":
        torch.save(torch.nn.Linear(2, 2), source)
    else:
        torch.save({"list": [1, 2], "empty": {}}.get(kind, {"a": torch.ones(99)}), source)
    if kind == "truncated":
        source.write_bytes(source.read_bytes()[:-200])
    with pytest.raises(pickle_reader.UnreadablePickleError, match=r"^it (is|holds) "):
        pickle_reader.read_tensors(source)
    assert not (tmp_path / "created").exists()


def test_reader_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "model.ckpt"
    torch.save({"a": torch.ones(1)}, source)
    monkeypatch.setattr(pickle_conversion, "_MODULE", "t2i_cli.no_such_module")
    with pytest.raises(ModelError, match="the process that read it ended with code 1"):
        pickle_conversion.convert_pickle(source, None)
    assert os.listdir(tmp_path) == ["model.ckpt"]
