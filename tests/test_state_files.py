"""State files: what lies in their place stays, and what they say is believed only if sound."""

import json
import math
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i_cli.backends.local import LocalOptions
from t2i_cli.batch import timings
from t2i_cli.errors import StorageError
from t2i_cli.files import state_files
from t2i_cli.files.state_files import open_regular, replace_text
from t2i_cli.settings import store
from t2i_cli.vertex import endpoint_store, machine_types
from t2i_cli.worker import spawn
from t2i_cli.worker.fingerprint import WorkerSpec
from t2i_cli.worker.state import RuntimeDir, WorkerState, WorkerUnavailableError


def a_link(path: Path) -> None:
    path.with_name("others").write_text("precious")
    path.symlink_to("others")


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


PLANTED = [a_link, a_dangling_link, os.mkfifo, os.mkdir]
Plant = Callable[[Path], None]


def kept(path: Path) -> bool:
    """Whether what was planted is still what it was, and nothing came through it."""
    others = path.with_name("others")
    whole = not others.exists() or others.read_text() == "precious"
    return (
        whole and not path.with_name("nowhere").exists() and not stat.S_ISREG(path.lstat().st_mode)
    )


@pytest.mark.parametrize("plant", [*PLANTED, a_socket])
def test_only_a_regular_file_is_opened_or_replaced(plant: Plant, tmp_path: Path) -> None:
    path = tmp_path / "state"
    plant(path)
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_RDWR | os.O_APPEND):
        with pytest.raises(OSError, match="it is a link|it is a folder|it is no regular file"):
            open_regular(path, flags)
    with pytest.raises(OSError, match="it is a link|it is a folder|it is no regular file"):
        replace_text(path, "new")
    assert kept(path)


def test_a_device_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("It was opened."))
    with pytest.raises(OSError, match="no regular file"):
        open_regular(Path("/dev/null"), os.O_RDONLY)


def test_what_is_written_appears_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "state"
    replace_text(path, "one", mode=0o600)
    replace_text(path, "twö")
    assert path.read_text(encoding="utf-8") == "twö"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("plant", PLANTED)
def test_endpoints_are_not_kept_in_anothers_place(plant: Plant) -> None:
    file = endpoint_store.store_path()
    file.parent.mkdir(parents=True)
    plant(file)
    assert endpoint_store.list_records() == []
    with pytest.raises(StorageError, match="Cannot write .*: it is "):
        endpoint_store.remember_endpoint(
            endpoint_store.EndpointRecord(name="projects/p/locations/l/endpoints/1")
        )
    assert kept(file)
    file.with_name("vertex.json.lock").unlink()
    plant(Path(f"{file}.lock")) if plant is not a_link else None
    with pytest.raises(StorageError, match="Cannot write .*: it is "):
        endpoint_store.remember_endpoint(
            endpoint_store.EndpointRecord(name="projects/p/locations/l/endpoints/1")
        )


@pytest.mark.parametrize("plant", PLANTED)
def test_timings_are_not_kept_in_anothers_place(plant: Plant) -> None:
    file = timings._path()
    file.parent.mkdir(parents=True)
    plant(file)
    timings.record_timing("m", "cpu", 1.0)
    assert timings.lookup_timing("m", "cpu") is None
    assert kept(file)


NAMES = ["worker.lock", "start.lock", "worker.json", "worker.log", "worker.sock"]


@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize("name", NAMES)
def test_no_worker_is_used_in_a_folder_with_anything_else_in_it(
    plant: Plant, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    place = RuntimeDir.find()
    plant(place.folder / name)
    with pytest.raises(
        WorkerUnavailableError, match=f"{name}' is not what a warm worker leaves there"
    ):
        RuntimeDir.find()
    assert kept(place.folder / name)


def test_the_worker_opens_nothing_through_a_link(tmp_path: Path) -> None:
    """What came there since the folder was looked at."""
    place = RuntimeDir(tmp_path)
    a_link(place.log)
    wanted = WorkerSpec(model="postcard", revision=None, options=LocalOptions())
    with pytest.raises(WorkerUnavailableError, match="it is a link"):
        spawn._spawn(place, wanted, "x", 1.0)
    assert kept(place.log)
    (tmp_path / "worker.sock").write_text("precious")
    (tmp_path / "worker.new").symlink_to("others")
    place.write(WorkerState(pid=2, identity="x", version="1", model="m"))
    place.clear()
    assert (tmp_path / "others").read_text() == "precious"
    assert (tmp_path / "worker.sock").read_text() == "precious"


@pytest.mark.parametrize("value", ["postcard", "sd15"])
def test_settings_kept_elsewhere_through_a_link_stay_there(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dotfiles").mkdir()
    kept_file = tmp_path / "dotfiles/t2i.toml"
    kept_file.write_text("# mine\n")
    (tmp_path / "t2i.toml").symlink_to(kept_file)
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "t2i.toml"))
    store.set_setting("model", value)
    assert (tmp_path / "t2i.toml").is_symlink()
    assert kept_file.read_text() == f'# mine\nmodel = "{value}"\n'


# What they say.

WRONG: list[object] = [
    *(None, True, False, -1, 0, 1, 1.5, 2**80, math.nan, math.inf, -math.inf, 10**400),
    *("", "x", "x" * 10_000, "a\nb", "\0", "\ud800", "../../x", "/etc/passwd"),
    *([], {}, [[]], {"a": {}}, ["x"], {"machineType": []}, {"acceleratorCount": "x"}),
]
BYTES = [
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"[",
        b"{}",
        b"[]",
        b"null",
        b"1e999",
        b'"x"',
        b"NaN",
        b"\xef\xbb\xbf{}",
    ),
    *(
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 900 + b"]" * 900,
        b" " * 2_000_000,
        b"9" * 100_000,
    ),
    *(
        '{"pid": 2}'.encode("utf-16"),
        b'{"current": [], "endpoints": {}}',
        b'{"endpoints": [[], 1]}',
    ),
]
VALUES = st.recursive(
    st.sampled_from(WRONG) | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
STATE = asdict(
    WorkerState(pid=2, identity="x", version="1", model="m", port=7, secret="s", started=1.0)  # noqa: S106
)
ENDPOINT = asdict(
    endpoint_store.EndpointRecord(
        name="projects/p/locations/l/endpoints/1",
        dns="1.l-2.prediction.vertexai.goog",
        serving="t2i",
        model="m",
        deployed_model="3",
        replicas=1,
        machine={
            "machineType": "g2-standard-4",
            "acceleratorType": "NVIDIA_L4",
            "acceleratorCount": 1,
        },
        expires=1e9,
    )
)


def state_of(folder: Path, data: bytes) -> WorkerState | None:
    """What a worker's state says; what is believed can be used."""
    (folder / "worker.json").write_bytes(data)
    found = RuntimeDir(folder).state()
    if found:
        assert 1 < found.pid < 2**31
        assert found.port is None or 0 < found.port < 2**16
        assert found.socket in (None, str(folder / "worker.sock"))
        assert all(isinstance(t, str) for t in (found.identity, found.version, found.model))
    return found


def endpoints_of(data: bytes) -> list[endpoint_store.EndpointRecord]:
    """What is known of endpoints; what is believed can be used."""
    endpoint_store.store_path().parent.mkdir(parents=True, exist_ok=True)
    endpoint_store.store_path().write_bytes(data)
    found = endpoint_store.list_records()
    endpoint_store.current_endpoint()
    endpoint_store.find_record("1")
    for one in found:
        machine_types.hardware_from_api({"machineSpec": one.machine}).price(machine_types.BUILT_IN)
        assert one.expires is None or math.isfinite(one.expires)
    return found


def timings_of(data: bytes) -> dict[str, float]:
    """What is known of times; what is believed can be added."""
    timings._path().parent.mkdir(parents=True, exist_ok=True)
    timings._path().write_bytes(data)
    found = timings._read()
    assert math.isfinite(sum(found.values()))
    return found


@pytest.mark.parametrize("data", BYTES, ids=range(len(BYTES)))
def test_a_file_that_is_no_state_counts_as_none(data: bytes, tmp_path: Path) -> None:
    assert state_of(tmp_path, data) is None
    assert endpoints_of(data) == []
    assert timings_of(data) == {}


@pytest.mark.parametrize("field", STATE)
def test_a_worker_that_says_what_none_does_counts_as_none(field: str, tmp_path: Path) -> None:
    assert state_of(tmp_path, json.dumps(STATE).encode())
    for wrong in WRONG:
        found = state_of(tmp_path, json.dumps(STATE | {field: wrong}).encode())
        assert found is None or getattr(found, field) == wrong
    if field in {"pid", "identity", "version", "model"}:
        assert (
            state_of(tmp_path, json.dumps({k: v for k, v in STATE.items() if k != field}).encode())
            is None
        )


@pytest.mark.parametrize(
    "wrong",
    [
        *({"pid": p} for p in (-1, 0, 1, True, 2.0, "2", 2**31, None)),
        *({"port": p} for p in (0, -1, 65_536, "7", 7.0, True)),
        *({"socket": s} for s in ("/run/docker.sock", "worker.sock", "../worker.sock", "\0", 5)),
        *({"started": s} for s in ("1", -1.0, math.inf, math.nan, True)),
        *({"secret": s} for s in ("a\r\nX: y", "ä", 5)),
        *({"warm": w} for w in (1, "yes", None)),
        {"token": ["x"]},
        {"identity": None},
    ],
    ids=str,
)
def test_a_wrong_value_spoils_a_worker_s_state(wrong: dict[str, object], tmp_path: Path) -> None:
    assert state_of(tmp_path, json.dumps(STATE | wrong).encode()) is None


@pytest.mark.parametrize("field", ENDPOINT)
def test_a_damaged_endpoint_is_left_out_and_no_other(field: str) -> None:
    sound = ENDPOINT | {"name": "projects/p/locations/l/endpoints/2"}
    for wrong in WRONG:
        record = {"current": wrong, "endpoints": [ENDPOINT | {field: wrong}, sound, wrong]}
        found = endpoints_of(json.dumps(record).encode())
        assert found[-1].name == sound["name"]
        assert len(found) == 1 or getattr(found[0], field) == wrong
    record = {"current": sound["name"], "endpoints": [ENDPOINT | {"dns": "a.b/x?@evil"}, sound]}
    assert len(endpoints_of(json.dumps(record).encode())) == 1
    assert endpoint_store.current_endpoint() is not None


def test_a_damaged_time_is_left_out_and_no_other() -> None:
    for wrong in [one for one in WRONG if one == one]:  # NaN equals nothing
        found = timings_of(json.dumps({"a on cpu": wrong, "b on cpu": 2.5}).encode())
        assert found["b on cpu"] == 2.5
        assert found.get("a on cpu", wrong) == wrong


@given(st.dictionaries(st.sampled_from([*STATE, *ENDPOINT]), VALUES))
def test_whatever_they_say_is_no_traceback(
    tmp_path_factory: pytest.TempPathFactory, said: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("state")
    state_of(folder, json.dumps(STATE | said).encode())
    endpoints_of(json.dumps({"current": "x", "endpoints": [ENDPOINT | said, said]}).encode())
    timings_of(json.dumps(said).encode())


def test_the_largest_state_is_read() -> None:
    assert state_files.parse_json(b"[" * 30 + b"]" * 30) is not None
    with pytest.raises(ValueError, match="nested too deeply"):
        state_files.parse_json(b"[" * 40 + b"]" * 40)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State and caches are the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
