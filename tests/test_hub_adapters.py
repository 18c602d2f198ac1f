"""LoRAs from the Hub: which file is meant, what its download takes, and offline."""

import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag

import pytest

from t2i_cli.backend import Failure
from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.errors import ModelError, StorageError
from t2i_cli.events import Event, Notice
from t2i_cli.models import adapter_sources
from t2i_cli.models.file_digests import sha256_of
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.request_adapters import Adapter
from t2i_cli.worker.backend import WorkerBackend
from tests import factories
from tests.fakes import lora_files
from tests.fakes.hub import FakeHub, Repo
from tests.hub_in_process import use_fake_hub

NAME = "ann/snow"
CARD = b"---\nlicense: openrail++\ntags: [lora]\n---\n# Snow\n"
SNOW = lora_files.SNOW.read_bytes()


@pytest.fixture
def cache(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and this process's huggingface_hub pointed at the fake hub."""
    hub.repos[NAME] = Repo({"README.md": CARD, "snow.safetensors": SNOW})
    hub.repos["ann/two"] = Repo({"a.safetensors": SNOW, "b.safetensors": SNOW, "x/c.bin": b"1"})
    hub.repos["ann/pickle"] = Repo({"pytorch_lora_weights.bin": b"1"})
    return use_fake_hub(hub, tmp_path, monkeypatch)


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
    assert told.message == f"{NAME}/snow.safetensors takes 48.6 kB; downloading."
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
    with pytest.raises(StorageError, match="needs 48.6 kB, and .* has 1.0 kB free"):
        adapter_sources.fetch_adapter(lora(NAME), None, offline=False, on_event=lambda _: None)


def test_with_a_warm_worker_too_its_download_is_asked_for(hub: FakeHub, cache: Path) -> None:
    hub.repos["ann/large"] = Repo({"large.safetensors": bytes(3 * 2**20 + 5)})
    asks = WorkerBackend(LocalOptions(), 60, lambda _: pytest.fail("It needs no torch."))
    asked = factories.request(model="postcard", loras=(lora("ann/large"), lora(NAME)))
    assert asks.estimate(asked) == {"download_mib": 3}
    adapter_sources.fetch_adapter(lora("ann/large"), None, offline=False, on_event=lambda _: None)
    assert asks.estimate(replace(asked, loras=(lora("ann/large"),))) == {}
    assert asks.estimate(replace(asked, loras=None)) == {}


def test_a_disk_too_small_for_all_of_them_is_told_before_the_first(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        free = 60_000  # room for one of them

    hub.repos["ann/rain"] = Repo({"rain.safetensors": SNOW[:-1] + b"1"})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Small)
    backend = LocalBackend(LocalOptions(device="cpu"))
    loras = (lora(NAME), lora("ann/rain"))
    asked = build_request({"prompt": "x", "model": "postcard", "seed": 1, "loras": loras})
    settled = resolve_request(asked, backend.describe(asked))
    [failure] = backend.run([settled], lambda _: None, Flag())
    assert isinstance(failure, Failure) and isinstance(failure.error, StorageError)
    assert failure.error.message.startswith(
        "The download of postcard with its LoRAs and embeddings needs 97.3 kB, and "
    )
    assert not list(cache.rglob("*.safetensors"))
