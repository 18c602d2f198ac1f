"""Models in buckets: named by their URLs, fetched once into a copy on this machine."""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from types import SimpleNamespace

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from t2i_cli import hub, postcard
from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.buckets import copy_download, local_copy, object_store
from t2i_cli.buckets.object_store import ObjectStore
from t2i_cli.errors import InputError, ModelError, RemoteError, StorageError
from t2i_cli.events import Downloading, Event, Notice
from t2i_cli.models import bucket_models, catalog, composed_model
from t2i_cli.models.model_files import ModelFiles
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.part_source import PartSource, parse_part_source
from tests import tiny_checkpoints, tiny_models
from tests.fakes import single_files

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


class Bucket:
    """A place in memory with a model; `asked` counts reads by object."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files = MemoryFileSystem()
        self.cut = False
        self.asked: dict[str, int] = {}

    def put(self, name: str, data: bytes) -> None:
        self.files.pipe_file(f"{self.url}/{name}", data)

    def put_folder(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(path.relative_to(folder).as_posix(), path.read_bytes())


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty place; nothing of the copies and listings of other tests is seen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(object_store, "RETRY_POLICY", RetryPolicy(retries=1, first_pause=0.001))
    monkeypatch.setattr(bucket_models, "_listings", {})
    monkeypatch.setattr(copy_download, "COPY_CHUNK_BYTES", 2**20)
    found = Bucket(f"memory://{tmp_path.name}/card")
    read, find = ObjectStore.read_range, MemoryFileSystem.find

    def counted(store: ObjectStore, name: str, start: int, end: int) -> bytes:
        found.asked[name] = found.asked.get(name, 0) + 1
        return read(store, name, start, end)

    def found_or_cut(*args: object, **options: object) -> object:
        if found.cut:
            raise ConnectionError("the network was cut")
        return find(*args, **options)

    monkeypatch.setattr(ObjectStore, "read_range", counted)
    monkeypatch.setattr(MemoryFileSystem, "find", found_or_cut)
    yield found
    MemoryFileSystem.store.clear()


@pytest.fixture
def card(bucket: Bucket) -> Bucket:
    """The embedded model in a bucket."""
    bucket.put_folder(postcard.FOLDER)
    return bucket


def files_of(url: str, *, offline: bool = False) -> ModelFiles:
    spec = composed_model.resolve_with_parts(
        url, None, {}, offline=offline, trust_remote_code=False
    )
    return ModelFiles(spec, offline=offline)


def look_again() -> None:
    """Forget what was listed, as a later process has."""
    bucket_models._listings.clear()


def test_a_folder_is_described_by_its_configs_and_fetched_when_it_is_loaded(card: Bucket) -> None:
    files = files_of(card.url)
    assert not [name for name in card.asked if name.endswith(".safetensors")]
    total, missing = files.size("float32")
    size = sum(path.stat().st_size for path in postcard.FOLDER.rglob("*") if path.is_file())
    assert total * 0.99 < missing < total <= size
    events: list[Event] = []
    folder = files.download("float32", events.append)
    assert folder
    assert (folder / WEIGHTS).read_bytes() == (postcard.FOLDER / WEIGHTS).read_bytes()
    notice, *progress = events
    assert isinstance(notice, Notice)
    assert notice.message == f"{card.url} takes 16.0 MB; downloading."
    assert notice.hint
    assert "are free" in notice.hint
    last = progress[-1]
    assert isinstance(last, Downloading)
    assert (last.done, last.total) == (total, total)
    # Whole: nothing is fetched any more, not by another process either.
    card.asked.clear()
    look_again()
    files = files_of(card.url)
    assert files.size("float32") == (total, 0)
    events.clear()
    assert files.download("float32", events.append) == folder
    assert (card.asked, events) == ({}, [])
    assert not list(folder.rglob("*.incomplete"))


def test_its_picture_is_that_of_the_folder_and_its_record_has_the_url(card: Bucket) -> None:
    backend = LocalBackend(LocalOptions(device="cpu"))
    made = []
    for model in (card.url, str(postcard.FOLDER)):
        request = build_request({"prompt": "a red star", "model": model, "seed": 1, "steps": 1})
        resolved = resolve_request(request, backend.describe(request))
        [outcome] = backend.run([resolved], lambda _: None, Flag())
        assert isinstance(outcome, GeneratedImage)
        made.append((resolved, np.array(outcome.image)))
    assert (made[0][1] == made[1][1]).all()
    assert made[0][0].model == card.url
    assert backend.resolve_revision(card.url, None) is None


def test_a_single_file_is_described_by_its_header(bucket: Bucket, tmp_path: Path) -> None:
    base = tmp_path / "sd15"
    tiny_models.save_pipeline(tiny_checkpoints.sd15, base)
    file = single_files.save_checkpoint(base, tmp_path / "tiny.safetensors")
    bucket.put("tiny.safetensors", file.read_bytes())
    url = f"{bucket.url}/tiny.safetensors"
    backend = LocalBackend(LocalOptions(device="cpu"))
    values = {"prompt": "x", "seed": 1, "steps": 1, "width": 64, "height": 64}
    made, requests = [], []
    for model in (url, str(file)):
        parts = {"base": parse_part_source(str(base))}
        request = build_request({**values, "model": model, **parts})
        resolved = resolve_request(request, backend.describe(request))
        requests.append(resolved)
        if model == url:
            [copy] = local_copy.list_copies()
            assert copy.missing(["tiny.safetensors"])
            # Before and after it is fetched, a row has the same id.
            before = resolved.identity()
            assert backend.plan(resolved).download_mib == file.stat().st_size // 2**20
        [outcome] = backend.run([resolved], lambda _: None, Flag())
        assert isinstance(outcome, GeneratedImage), outcome.error.message
        made.append(outcome)
    assert (np.array(made[0].image) == np.array(made[1].image)).all()
    assert requests[0].model == url
    assert made[0].info.sha256 == made[1].info.sha256 is not None
    look_again()
    request = build_request({**values, "model": url, "base": parse_part_source(str(base))})
    assert resolve_request(request, backend.describe(request)).identity() == before


def test_a_file_in_a_bucket_and_its_base_on_the_hub_are_both_to_be_downloaded(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "sd15"
    tiny_models.save_pipeline(tiny_checkpoints.sd15, base)
    file = single_files.save_checkpoint(base, tmp_path / "tiny.safetensors")
    bucket.put("tiny.safetensors", file.read_bytes())
    spec = composed_model.resolve_with_parts(
        f"{bucket.url}/tiny.safetensors",
        None,
        {"base": PartSource(str(base))},
        offline=False,
        trust_remote_code=False,
    )
    assert spec.composition
    on_hub = replace(spec, composition=replace(spec.composition, folder=None, repo="ann/base"))
    monkeypatch.setattr(
        hub, "download_size", lambda *_, **__: hub.DownloadSize(total_bytes=70, missing_bytes=30)
    )
    size = file.stat().st_size
    assert ModelFiles(on_hub, offline=False).size("float32") == (size + 70, size + 30)


def test_a_fetch_that_broke_off_is_gone_on_with(
    card: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(card.url)
    read, left = ObjectStore.read_range, [3]

    def breaks(store: ObjectStore, name: str, start: int, end: int) -> bytes:
        left[0] -= name == WEIGHTS
        if left[0] < 0:
            raise RemoteError("the network was cut")
        return read(store, name, start, end)

    monkeypatch.setattr(copy_download, "PARALLEL_CHUNKS", 1)
    with monkeypatch.context() as broken:
        broken.setattr(ObjectStore, "read_range", breaks)
        with pytest.raises(RemoteError):
            files.download("float32", lambda _: None)
    [copy] = local_copy.list_copies()
    assert copy.incomplete(WEIGHTS).stat().st_size == 3 * 2**20
    assert not copy.path(WEIGHTS).exists()
    total, missing = files.size("float32")
    assert missing <= total - 3 * 2**20
    card.asked.clear()
    folder = files.download("float32", lambda _: None)
    assert folder
    data = (postcard.FOLDER / WEIGHTS).read_bytes()
    assert (folder / WEIGHTS).read_bytes() == data
    assert card.asked[WEIGHTS] == -(-len(data) // 2**20) - 3


def test_another_content_is_told_and_fetched_and_the_rest_is_kept(card: Bucket) -> None:
    files_of(card.url).download("float32", lambda _: None)
    changed = bytearray((postcard.FOLDER / WEIGHTS).read_bytes())
    changed[-1] ^= 1
    card.put(WEIGHTS, bytes(changed))
    card.asked.clear()
    # In the run that began before, the model stays the one that it was.
    assert files_of(card.url).size("float32")[1] == 0
    look_again()
    events: list[Event] = []
    folder = files_of(card.url).download("float32", events.append)
    assert folder
    assert (folder / WEIGHTS).read_bytes() == changed
    assert card.asked.keys() == {WEIGHTS}
    assert isinstance(events[0], Notice)
    assert f"{card.url} has changed, and takes " in events[0].message
    # A third version, and the first has no place any more.
    for _ in range(2):
        changed[-1] ^= 2
        card.put(WEIGHTS, bytes(changed))
        look_again()
        files_of(card.url).download("float32", lambda _: None)
    assert len(list(folder.parent.glob("*.json"))) == 2


def test_a_change_while_it_is_fetched_is_refused(card: Bucket) -> None:
    files = files_of(card.url)
    card.put(WEIGHTS, (postcard.FOLDER / WEIGHTS).read_bytes()[::-1])
    with pytest.raises(RemoteError, match="was changed while it was fetched"):
        files.download("float32", lambda _: None)
    look_again()
    assert files_of(card.url).download("float32", lambda _: None)


def test_processes_beside_each_other_fetch_a_file_once(card: Bucket) -> None:
    chosen = [files_of(card.url) for _ in range(4)]
    card.asked.clear()
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda files: files.download("float32", lambda _: None), chosen))
    assert len(set(done)) == 1
    size = (postcard.FOLDER / WEIGHTS).stat().st_size
    assert card.asked[WEIGHTS] == -(-size // 2**20)


def test_a_bucket_out_of_reach_leaves_the_copy(card: Bucket) -> None:
    card.cut = True
    with pytest.raises(RemoteError):
        files_of(card.url)
    card.cut = False
    files_of(card.url).download("float32", lambda _: None)
    look_again()
    card.cut = True
    events: list[Event] = []
    files = files_of(card.url)
    assert files.size("float32")[1] == 0
    files.download("float32", events.append)
    assert isinstance(events[0], Notice)
    assert f"The copy of {card.url} on this machine is used." in events[0].message


def test_offline_takes_what_is_there_and_asks_nothing(card: Bucket) -> None:
    with pytest.raises(ModelError, match="is not downloaded") as refused:
        files_of(card.url, offline=True)
    assert refused.value.hint == f"`t2i models pull {card.url}` downloads it."
    files = files_of(card.url)
    card.cut = True
    with pytest.raises(ModelError, match="is not downloaded"):
        files_of(card.url, offline=True).download("float32", lambda _: None)
    card.cut = False
    files.download("float32", lambda _: None)
    look_again()
    card.cut = True
    events: list[Event] = []
    files = files_of(card.url, offline=True)
    assert files.size("float32")[1] == 0
    assert files.download("float32", events.append)
    assert events == []


def test_a_disk_that_is_too_small_is_told_before(
    card: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(card.url)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match=r"needs .* free\."):
        files.download("float32", lambda _: None)
    assert WEIGHTS not in card.asked


@pytest.mark.parametrize("name", ["cut.safetensors", "cut é 100%20.safetensors"])
def test_a_damaged_file_is_named_by_its_url_and_its_header_takes_little_room(
    bucket: Bucket, name: str
) -> None:
    data = (postcard.FOLDER / WEIGHTS).read_bytes()
    bucket.put(name, data[:-100])
    with pytest.raises(ModelError) as refused:
        files_of(f"{bucket.url}/{name}")
    assert refused.value.message.startswith(f"The weights file {bucket.url}/{name} is truncated: ")
    [copy] = local_copy.list_copies()
    assert not copy.is_begun
    assert local_copy.disk_bytes(copy) < len(data) / 10


def test_a_damaged_file_of_a_folder_is_named_by_its_url(card: Bucket) -> None:
    card.put(WEIGHTS, (postcard.FOLDER / WEIGHTS).read_bytes()[:-100])
    backend = LocalBackend(LocalOptions(device="cpu"))
    request = build_request({"prompt": "x", "seed": 1, "steps": 1, "model": card.url})
    resolved = resolve_request(request, backend.describe(request))
    [outcome] = backend.run([resolved], lambda _: None, Flag())
    assert isinstance(outcome, Failure)
    assert outcome.error.message.startswith(f"The weights file {card.url}/{WEIGHTS} is truncated: ")
    assert local_copy.list_copies()[0].is_begun


@pytest.mark.parametrize("field", ["base", "vae", "text_encoder", "transformer"])
def test_urls_of_parts_are_refused_as_such(bucket: Bucket, tmp_path: Path, field: str) -> None:
    base = tmp_path / "sd15"
    tiny_models.save_pipeline(tiny_checkpoints.sd15, base)
    model = str(base)
    if field == "base":
        model = str(single_files.save_checkpoint(base, tmp_path / "tiny.safetensors"))
    with pytest.raises(InputError, match="is named by a URL, which -m alone takes") as refused:
        composed_model.resolve_with_parts(
            model,
            None,
            {field: PartSource(f"{bucket.url}/x")},
            offline=False,
            trust_remote_code=False,
        )
    assert refused.value.field == field


def _only_a_file(bucket: Bucket) -> str:
    bucket.put("model.safetensors", b"x")
    return bucket.url


def _a_lora(bucket: Bucket) -> str:
    bucket.put("my-lora.safetensors", b"x")
    return bucket.url


def _no_weights(bucket: Bucket) -> str:
    bucket.put("model.safetensors", b"<!doctype html>")
    return f"{bucket.url}/model.safetensors"


def _many(bucket: Bucket) -> str:
    for number in range(5001):
        bucket.put(f"{number}.png", b"x")
    return bucket.url


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (lambda bucket: bucket.url, "There is no model at memory://"),
        (lambda bucket: f"{bucket.url}/x.safetensors", "There is no model at memory://"),
        (lambda bucket: f"{bucket.url}/x.ckpt", "is a pickle file, which can run code"),
        (_only_a_file, "holds single files of weights (model.safetensors)"),
        (_a_lora, "holds a LoRA"),
        (_no_weights, "a web page"),
        (_many, "has 5,001 objects, and is no model's folder"),
        (lambda _: "nothing://box/x", "Protocol not known: nothing"),
        (lambda _: "az://box/x", "az:// needs a package that is not installed"),
        (lambda _: "simplecache::s3://box/x", "is a chain of URLs"),
    ],
)
def test_what_is_no_model_is_one_sentence(
    bucket: Bucket, tmp_path: Path, place: Callable[[Bucket], str], said: str
) -> None:
    with pytest.raises((ModelError, InputError)) as refused:
        files_of(place(bucket))
    assert said in refused.value.message
    assert str(tmp_path / "cache") not in refused.value.message


def test_names_that_lead_out_of_the_copy_are_not_taken(card: Bucket, tmp_path: Path) -> None:
    name = f"/{card.url.partition('://')[2]}/unet/..\\evil.json"
    MemoryFileSystem.store[name] = MemoryFileSystem.store[
        f"/{card.url.partition('://')[2]}/model_index.json"
    ]
    files_of(card.url).download("float32", lambda _: None)
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("hf://owner/name", ("owner/name", None)),
        ("hf://models/owner/name@v1", ("owner/name", "v1")),
        ("hf://datasets/owner/name", ("hf://datasets/owner/name", None)),
        ("hf://buckets/owner", ("hf://buckets/owner", None)),
        ("hf://owner/name/folder", ("hf://owner/name/folder", None)),
    ],
)
def test_a_whole_repository_is_that_of_the_hub(url: str, found: tuple[str, str | None]) -> None:
    assert catalog.parse_address(url) == found


def test_damaged_notes_of_a_copy_are_made_anew(card: Bucket) -> None:
    files_of(card.url).download("float32", lambda _: None)
    [copy] = local_copy.list_copies()
    listing = copy.folder.with_suffix(".json")
    whole = listing.read_text()
    for text in ("", "[]", "{}", json.dumps(json.loads(whole) | {"files": {"../x": [1, "y"]}})):
        listing.write_text(text)
        assert local_copy.list_copies() == []
        look_again()
        assert files_of(card.url).size("float32")[1] == 0
        assert listing.read_text() == whole
