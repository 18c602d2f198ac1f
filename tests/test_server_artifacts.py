"""AIP_STORAGE_URI: a folder, or files brought from a Cloud Storage on loopback."""

import base64
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from google_crc32c import Checksum

from t2i_cli import postcard
from t2i_cli.errors import AccessError, ModelError, RemoteError, StorageError
from t2i_cli.events import Downloading, Event
from t2i_cli.net import gcs, retry
from t2i_cli.net.retry import RetryableError
from t2i_cli.server import gcs_download
from tests.fakes.vertex import FakeVertex, Fault, running_vertex

URI = "gs://models/sd/one"
FILES = {"model_index.json": b"{}", "unet/weights.safetensors": bytes(3_000_000), "vae/a b": b""}
OBJECTS = r"GET /storage/v1/b/models/o$"
FILE = r"GET /storage/v1/b/models/o/.+"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVertex]:
    with running_vertex(tmp_path_factory.mktemp("cloud")) as vertex:
        vertex.buckets["models"] = {"name": "models"}
        yield vertex


@pytest.fixture
def cloud(running: FakeVertex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeVertex:
    """A bucket with a model and some neighbours, read without credentials."""
    monkeypatch.setattr(retry, "_pause", lambda *_: 0.0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(gcs.EMULATOR_VARIABLE, running.url.removeprefix("http://"))
    running.require_token, running.granted = False, None
    running.faults.clear()
    running.objects.clear()
    for path, data in FILES.items():
        put(running, f"sd/one/{path}", data)
    put(running, "sd/one/empty/", b"")
    put(running, "sd/one-more/model_index.json", b"not this one")
    return running


def put(vertex: FakeVertex, name: str, data: bytes, *, sum_of: bytes | None = None) -> None:
    """Lay a file into the bucket; its checksum is another file's where that is given."""
    checksum = Checksum(data if sum_of is None else sum_of)  # type: ignore[no-untyped-call]
    crc32c = base64.b64encode(checksum.digest()).decode()  # type: ignore[no-untyped-call]
    metadata = {"name": name, "size": str(len(data)), "crc32c": crc32c}
    vertex.objects["models", name] = (metadata, data)


def read(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def nothing_left() -> bool:
    return not list(Path(tempfile.gettempdir()).iterdir())


@pytest.mark.parametrize("form", [str, Path.as_uri])
def test_a_folder_is_itself(form: object) -> None:
    assert callable(form)
    assert gcs_download.download_artifacts(form(postcard.FOLDER)) == postcard.FOLDER


@pytest.mark.parametrize("uri", ["/no/such/folder", "file:///no/such/folder", "https://there/it"])
def test_no_folder(uri: str) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        gcs_download.download_artifacts(uri)


@pytest.mark.parametrize("uri", [URI, f"{URI}/"])
def test_every_file_of_the_bucket_is_brought(cloud: FakeVertex, uri: str) -> None:
    events: list[Event] = []
    assert read(gcs_download.download_artifacts(uri, events.append)) == FILES
    total = sum(map(len, FILES.values()))
    told = [event for event in events if isinstance(event, Downloading)]
    assert [(e.done, e.total) for e in (told[0], told[-1])] == [(0, total), (total, total)]


def test_the_copy_goes_with_whoever_took_it(cloud: FakeVertex) -> None:
    with ExitStack() as end:
        assert read(gcs_download.download_artifacts(URI, stack=end)) == FILES
        assert gcs_download.download_artifacts(str(postcard.FOLDER), stack=end) == postcard.FOLDER
    assert nothing_left()
    assert postcard.FOLDER.is_dir()


def test_the_copys_place_is_the_same_on_every_replica_and_no_others(cloud: FakeVertex) -> None:
    first = gcs_download.download_artifacts(URI)
    assert first == Path(tempfile.gettempdir(), "t2i-model-models-sd-one")
    assert first.stat().st_mode & 0o777 == 0o700
    (first / "mine").touch()
    with ExitStack() as end:
        second = gcs_download.download_artifacts(URI, stack=end)
        assert second.name.startswith(f"{first.name}-")
        assert read(second) == FILES
    assert read(first) == FILES | {"mine": b""}
    long = f"sd/{'é' * 300}"
    put(cloud, f"{long}/model_index.json", b"{}")
    assert read(gcs_download.download_artifacts(f"gs://models/{long}")) == {
        "model_index.json": b"{}"
    }


def test_the_whole_bucket_is_a_model(cloud: FakeVertex) -> None:
    cloud.objects.clear()
    put(cloud, "model_index.json", b"{}")
    assert read(gcs_download.download_artifacts("gs://models")) == {"model_index.json": b"{}"}


def test_it_reads_with_the_credentials_of_google_auth(
    cloud: FakeVertex, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.require_token = True
    monkeypatch.delenv(gcs.EMULATOR_VARIABLE)
    monkeypatch.setattr(gcs, "GCS_HOST", cloud.url)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(cloud.key))
    assert read(gcs_download.download_artifacts(URI)) == FILES
    # The next token, after one that is not issued for the moment.
    cloud.faults.append(
        Fault(where="/token", status=503, body={}, times=gcs_download.DOWNLOAD_ATTEMPTS - 1)
    )
    assert read(gcs_download.download_artifacts(URI)) == FILES
    assert cloud.faults[-1].times == 0


@pytest.mark.parametrize("status", [408, 429, 500, 503])
@pytest.mark.parametrize("where", [OBJECTS, FILE])
def test_what_passes_is_tried_again(cloud: FakeVertex, where: str, status: int) -> None:
    cloud.faults.append(
        Fault(where=where, status=status, body={}, times=gcs_download.DOWNLOAD_ATTEMPTS - 1)
    )
    assert read(gcs_download.download_artifacts(URI)) == FILES


def test_a_connection_that_breaks_is_tried_again(cloud: FakeVertex) -> None:
    cloud.faults += [Fault(where=OBJECTS, cut=True), Fault(where="weights", cut=True, times=2)]
    assert read(gcs_download.download_artifacts(URI)) == FILES


def test_it_gives_up_and_leaves_nothing(cloud: FakeVertex) -> None:
    cloud.faults.append(
        Fault(where="weights", status=503, body={}, times=gcs_download.DOWNLOAD_ATTEMPTS)
    )
    with pytest.raises(RemoteError, match="Cannot read the bucket models: it answers 503"):
        gcs_download.download_artifacts(URI)
    assert nothing_left()


def test_a_file_that_arrives_damaged_is_no_model(cloud: FakeVertex) -> None:
    put(cloud, "sd/one/vae/a b", b"damaged", sum_of=b"sound")
    with pytest.raises(RemoteError, match="vae/a b arrived damaged"):
        gcs_download.download_artifacts(URI)
    assert nothing_left()


def test_no_more_of_a_file_is_written_than_its_size(tmp_path: Path) -> None:
    """Or an object that never ends would fill the disk."""

    class Endless:
        def iter_raw(self, size: int) -> Iterator[bytes]:
            for number in range(100):
                assert number < 3
                yield bytes(size)

    class Http:
        @contextmanager
        def stream(self, url: str, params: dict[str, str]) -> Iterator[Endless]:
            yield Endless()

        def retry(self, attempt: Callable[[], None]) -> None:
            attempt()

    http: Any = Http()
    blob = gcs.Blob(name="weights", size=gcs._READ_BYTES + 1, crc32c=None)
    with pytest.raises(RetryableError):
        gcs.GcsClient(http).download("models", blob, tmp_path / "weights")
    assert (tmp_path / "weights").stat().st_size <= blob.size


@pytest.mark.parametrize("permission", ["storage.objects.list", "storage.objects.get"])
def test_a_missing_permission_is_named(cloud: FakeVertex, permission: str) -> None:
    cloud.granted = {"storage.objects.list", "storage.objects.get"} - {permission}
    with pytest.raises(AccessError) as caught:
        gcs_download.download_artifacts(URI)
    assert caught.value.hint is not None
    assert permission in caught.value.hint


@pytest.mark.parametrize("uri", ["gs://models/sd/two", "gs://models/sd/one/unet/weights"])
def test_nothing_is_there(cloud: FakeVertex, uri: str) -> None:
    with pytest.raises(ModelError, match="no files at"):
        gcs_download.download_artifacts(uri)


def test_no_such_bucket(cloud: FakeVertex) -> None:
    with pytest.raises(ModelError, match="no bucket others"):
        gcs_download.download_artifacts("gs://others/sd")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a\\..\\evil", "./evil"])
def test_no_name_leads_out_of_the_folder(cloud: FakeVertex, name: str) -> None:
    put(cloud, f"sd/one/{name}", b"evil")
    with pytest.raises(ModelError, match="unsafe name"):
        gcs_download.download_artifacts(URI)
    assert nothing_left()


def test_a_disk_that_fails(cloud: FakeVertex) -> None:
    put(cloud, "sd/one/model_index.json/nested", b"a file stands in its way")
    with pytest.raises(StorageError, match="Cannot write"):
        gcs_download.download_artifacts(URI)
    assert nothing_left()
