"""LoRAs from the Hub: which file is meant, what its download takes, and offline."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from t2i_cli.errors import ModelError, StorageError
from t2i_cli.events import Event, Notice
from t2i_cli.hub import snapshot
from t2i_cli.models import adapter_sources
from t2i_cli.models.file_digests import sha256_of
from t2i_cli.request_adapters import Adapter
from tests.fakes import lora_files
from tests.fakes.hub import FakeHub, Repo

NAME = "ann/snow"
CARD = b"---\nlicense: openrail++\ntags: [lora]\n---\n# Snow\n"
SNOW = lora_files.SNOW.read_bytes()


@pytest.fixture
def cache(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and this process's huggingface_hub pointed at the fake hub."""
    folder = tmp_path / "cache"
    folder.mkdir()
    hub.repos[NAME] = Repo({"README.md": CARD, "snow.safetensors": SNOW})
    hub.repos["ann/two"] = Repo({"a.safetensors": SNOW, "b.safetensors": SNOW, "x/c.bin": b"1"})
    hub.repos["ann/pickle"] = Repo({"pytorch_lora_weights.bin": b"1"})
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(snapshot, "_COMMIT_TTL", -1)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return folder


def lora(source: str) -> Adapter:
    """A LoRA of that source."""
    return Adapter(kind="lora", source=source)


def test_size_and_digest_are_known_before_the_download(hub: FakeHub, cache: Path) -> None:
    found = adapter_sources.find_adapter(lora(NAME), None, offline=False)
    digest = sha256_of(lora_files.SNOW)
    assert (found.path, found.digest, found.download_bytes) == (None, digest, len(SNOW))
    events: list[Event] = []
    path = adapter_sources.fetch_adapter(lora(NAME), None, offline=False, on_event=events.append)
    assert path.read_bytes() == SNOW
    told = next(event for event in events if isinstance(event, Notice))
    assert told.message == f"{NAME}/snow.safetensors takes 59.0 kB; downloading."
    assert str(told.hint).startswith("Its licence is openrail++. It goes to ")
    again = adapter_sources.find_adapter(lora(NAME), None, offline=True)
    assert (again.path, again.digest, again.download_bytes) == (path, digest, 0)


def test_a_file_in_a_repository_is_named(hub: FakeHub, cache: Path) -> None:
    with pytest.raises(ModelError, match="ann/two has 2 files that may be meant"):
        adapter_sources.find_adapter(lora("ann/two"), None, offline=False)
    found = adapter_sources.find_adapter(lora("ann/two/b.safetensors"), None, offline=False)
    assert found.download_bytes == len(SNOW)
    with pytest.raises(ModelError, match="ann/two has no file c.safetensors"):
        adapter_sources.find_adapter(lora("ann/two/c.safetensors"), None, offline=False)
    with pytest.raises(ModelError, match="pickle files only, which can run code"):
        adapter_sources.find_adapter(lora("ann/pickle"), None, offline=False)


def test_offline_tells_what_is_missing(hub: FakeHub, cache: Path) -> None:
    with pytest.raises(ModelError, match="its file of ann/snow is not downloaded") as raised:
        adapter_sources.find_adapter(lora(NAME), None, offline=True)
    assert raised.value.hint == "A run that is online downloads it."


def test_a_full_disk_is_told_before(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Full)
    with pytest.raises(StorageError, match="needs 59.0 kB, and .* has 1.0 kB free"):
        adapter_sources.fetch_adapter(lora(NAME), None, offline=False, on_event=lambda _: None)
