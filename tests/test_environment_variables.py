"""Wrong environment variables of libraries stop only what needs them, by a sentence."""

import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from t2i_cli import library_environment, postcard
from t2i_cli.errors import InputError
from tests.conftest import T2I
from tests.fakes.hub import FakeHub, Repo
from tests.fakes.oauth import running_oauth

WRONG = {
    "ALL_PROXY": "socks://127.0.0.1:1",
    "HTTP_PROXY": "http://proxy:eight",
    "HTTPS_PROXY": "ftp://ann:secret@127.0.0.1:3",
    "SSL_CERT_FILE": "/gone/cert.pem",
    "SSLKEYLOGFILE": "/gone/keys",
    "HF_ENDPOINT": "hub.example",
    "HF_HUB_DOWNLOAD_TIMEOUT": "10s",
    "HF_HUB_ETAG_TIMEOUT": "-1",
    "HF_HUB_USER_AGENT_ORIGIN": "ü\n",
    "HF_TOKEN_PATH": "/",
    "GCE_METADATA_TIMEOUT": "soon",
    "GCE_METADATA_DETECT_RETRIES": "some",
    "GCE_METADATA_MTLS_MODE": "maybe",
    "DIFFUSERS_TIMEOUT_REMOTE_CODE": "x",
    "PROMETHEUS_MULTIPROC_DIR": "/gone",
    "prometheus_multiproc_dir": "/gone",
    "OMP_NUM_THREADS": "many",
}
"""A wrong value of each variable that is read without a folder of the test's; see `all_wrong`."""
UNLISTED = {
    "TQDM_MININTERVAL": "x",
    "WEB_CONCURRENCY": "x",
    "REQUESTS_CA_BUNDLE": "/gone",
    "CURL_CA_BUNDLE": "/gone",
    "COLUMNS": "x",
    "LINES": "x",
    "TERMINAL_WIDTH": "x",
    "TERM": "x",
    "NO_PROXY": "[::1,//,a b",
    "TZ": "Nowhere/At all",
    "LANGUAGE": "xx",
    "LC_ALL": "xx_XX.UTF-8",
    "UNICODE_VERSION": "x",
    "TRANSFORMERS_VERBOSITY": "x",
    "FORWARDED_ALLOW_IPS": "x",
}
"""Wrong values that no library of t2i stumbles over, or that t2i does not let it read."""
FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")


@pytest.fixture
def all_wrong(tmp_path: Path) -> dict[str, str]:
    """Every variable set wrongly at once; the folders are a file."""
    file = tmp_path / "file"
    file.touch()
    return WRONG | UNLISTED | dict.fromkeys(FOLDERS, str(file))


def prepared(monkeypatch: pytest.MonkeyPatch, values: Mapping[str, str]) -> None:
    """This process's environment with the values, and with none of the table's others."""
    monkeypatch.setattr(library_environment, "_set_aside", {})
    for variable in library_environment.VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
        monkeypatch.delenv(variable.name.lower(), raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_work_without_a_network_runs_with_all_set_wrong(
    t2i: T2I, tmp_path: Path, all_wrong: dict[str, str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a red star\n")
    commands = (
        ("batch", "prompts.txt", "-m", "postcard", "-o", "images", "--name", "{index}.png"),
        ("generate", "a red star", "-m", "postcard", "--dry-run", "--offline"),
        ("inspect", "images/1.png"),
        ("models", "list"),
        ("models", "show", "sdxl"),
        ("config", "list"),
    )
    for command in commands:
        done = t2i(*command, env=all_wrong)
        assert done.returncode == 0, (command, done.stderr)
        assert "Traceback" not in done.stderr and "libgomp" not in done.stderr


def test_serve_starts_with_all_set_wrong(
    t2i_env: dict[str, str], all_wrong: dict[str, str]
) -> None:
    process = subprocess.Popen(
        [*(sys.executable, "-m", "t2i_cli", "serve"), *("-m", "postcard", "--port", "0")],
        env=t2i_env | all_wrong,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    url = process.stdout.readline()
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert url.startswith("http://127.0.0.1:"), said


def test_doctor_names_each_and_goes_on(t2i: T2I, all_wrong: dict[str, str]) -> None:
    done = t2i("doctor", "--json", env=all_wrong)
    assert done.returncode == 0
    assert done.stderr == ""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    named = {one["detail"].split()[0] for one in found if one["name"] == "environment"}
    # Not read beside those that are set.
    unread = {"HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"}
    assert named == all_wrong.keys() - UNLISTED.keys() - unread
    others = {"device", "postcard", "model", "disk", "hub", "google"}
    assert others <= {one["name"] for one in found}
    assert {one["status"] for one in found if one["name"] in {"hub", "google"}} == {"note"}
    assert "secret" not in done.stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:1"),
        ("https_proxy", "ftp://127.0.0.1:3"),
        ("SSL_CERT_FILE", "/gone/cert.pem"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "10s"),
        ("HF_ENDPOINT", "hub.example"),
        ("HF_HUB_CACHE", os.devnull),
    ],
)
def test_work_that_needs_it_names_the_variable(
    t2i: T2I, hub: FakeHub, name: str, value: str
) -> None:
    done = t2i("models", "pull", "a/b", env=hub.environment | {"T2I_DTYPE": "float32", name: value})
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"error: {name.upper()} must be "), done.stderr
    assert hub.requests == []


def test_a_model_in_the_cache_is_used(t2i: T2I, hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["ann/postcard"] = Repo.from_folder(postcard.FOLDER)
    hub_env = hub.environment | {"T2I_DTYPE": "float32"}
    pulled = t2i("models", "pull", "ann/postcard", env=hub_env)
    assert pulled.returncode == 0, pulled.stderr
    hub.requests.clear()
    wrong = hub_env | WRONG | UNLISTED
    done = t2i("models", "pull", "ann/postcard", env=wrong)
    assert (done.returncode, done.stdout) == (0, pulled.stdout), done.stderr
    assert "The copy of ann/postcard in the cache is used." in done.stderr
    done = t2i("generate", "a red star", "-m", "ann/postcard", "--dry-run", "--offline", env=wrong)
    assert done.returncode == 0, done.stderr
    assert hub.requests == []


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_value_is_a_fault_of_its_own(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    beside = {"SSL_CERT_DIR": "/"} if name == "SSLKEYLOGFILE" else {}
    prepared(monkeypatch, {name: WRONG[name]} | beside)
    faults = library_environment.environment_faults()
    assert [fault.message.split()[0] for fault in faults] == [name]
    assert "secret" not in faults[0].message
    assert name in str(faults[0].hint)


def test_good_values_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import certifi

    folder = str(tmp_path)
    good = {
        "HTTP_PROXY": "proxy.example:3128",
        "HTTPS_PROXY": "http://ann:secret@[::1]:3128",
        "ALL_PROXY": "socks5h://127.0.0.1:1080",
        "SSL_CERT_FILE": certifi.where(),
        "SSL_CERT_DIR": "/gone",  # not read beside the file
        "SSLKEYLOGFILE": f"{folder}/keys",
        "HF_ENDPOINT": "https://hub.example:8443/hf/",
        "HF_HUB_DOWNLOAD_TIMEOUT": " 10",
        "HF_HUB_ETAG_TIMEOUT": "0",
        "HF_HOME": f"{folder}/not/there/yet",
        "HF_HUB_CACHE": "~/hub",
        "HF_TOKEN_PATH": f"{folder}/token",
        "GCE_METADATA_MTLS_MODE": "Default",
        "PROMETHEUS_MULTIPROC_DIR": folder,
        "OMP_NUM_THREADS": "4,2",
        "GCE_METADATA_TIMEOUT": "",
    }
    prepared(monkeypatch, good)
    assert library_environment.environment_faults() == []
    monkeypatch.setenv("all_proxy", "")  # wins, and means none
    monkeypatch.setenv("ALL_PROXY", "ftp://x")
    assert library_environment.environment_faults() == []
    monkeypatch.delenv("all_proxy")
    assert len(library_environment.environment_faults()) == 1
    monkeypatch.setenv("NO_PROXY", "localhost, *")  # no proxy is read
    assert library_environment.environment_faults() == []


def test_what_breaks_an_import_is_set_aside_and_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared(monkeypatch, {"HF_HUB_ETAG_TIMEOUT": "x", "TQDM_NCOLS": "x", "HF_HOME": ""})
    library_environment.set_aside_invalid()
    assert not {"HF_HUB_ETAG_TIMEOUT", "TQDM_NCOLS", "HF_HOME"} & os.environ.keys()
    with pytest.raises(InputError, match="HF_HUB_ETAG_TIMEOUT must be"):
        library_environment.require_valid("hub")
    library_environment.require_valid("http", "google")
    children = library_environment.environment_of_children()
    assert children["HF_HUB_ETAG_TIMEOUT"] == "x"


def test_a_variable_of_a_library_s_developers_is_named(t2i: T2I) -> None:
    for name in ("TORCH_LOGS", "DIFFUSERS_ATTN_BACKEND"):
        done = t2i("generate", "a red star", "-m", "postcard", env={name: "10s"})
        assert done.returncode == 2, done.stderr
        assert f"error: {name} is '10s', which " in done.stderr
        assert "Traceback" not in done.stderr


def relay(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)


@contextmanager
def socks_proxy() -> Iterator[tuple[str, list[int]]]:
    """A SOCKS5 proxy (RFC 1928) on loopback: its address, and the ports that it was asked for."""
    asked: list[int] = []

    def serve(client: socket.socket) -> None:
        with client, client.makefile("rb") as reader:
            answer(client, reader)

    def answer(client: socket.socket, reader: io.BufferedReader) -> None:
        methods = reader.read(2)[1]
        reader.read(methods)
        client.sendall(b"\x05\x00")
        kind = reader.read(4)[3]
        host = reader.read(4 if kind == 1 else reader.read(1)[0])
        port = int.from_bytes(reader.read(2))
        asked.append(port)
        address = socket.inet_ntoa(host) if kind == 1 else host.decode()
        with socket.create_connection((address, port)) as target:
            client.sendall(b"\x05\x00\x00\x01" + bytes(6))
            threading.Thread(target=relay, args=(target, client), daemon=True).start()
            relay(client, target)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client = listener.accept()[0]
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"socks5://127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)


def test_socks_works_out_of_the_box(
    t2i: T2I, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.users["hf_good"] = "ann"
    with socks_proxy() as (url, asked):
        env = hub.environment | {"ALL_PROXY": url}
        done = t2i("login", "--token-stdin", input="hf_good\n", env=env)
        assert done.returncode == 0, done.stderr
        assert len(asked) >= 1
    # Tokens of Google come the same way; its library would use another HTTP client.
    from t2i_cli.net import google_credentials

    with running_oauth() as oauth, socks_proxy() as (url, asked):
        monkeypatch.setattr("t2i_cli.net.http_client.is_loopback_url", lambda _: False)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(oauth.key_file(tmp_path)))
        monkeypatch.setenv("ALL_PROXY", url)
        google_credentials.verify_credentials()
        assert len(asked) == 1
