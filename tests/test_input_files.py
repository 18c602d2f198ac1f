"""Files that a user names: pipes, devices and sockets are refused at once, wherever one is read."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2i_cli.files.input_files import open_input, read_input
from tests.conftest import T2I

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")

KINDS = ("pipe", "socket", "link to a pipe", "/dev/zero")


@pytest.fixture(params=KINDS)
def endless(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A path that is no regular file, and would keep its reader waiting or never end."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "link to a pipe").symlink_to("pipe")
        yield tmp_path / str(request.param)


def test_no_endless_file_is_opened(endless: Path) -> None:
    with pytest.raises(OSError, match="it is no regular file"):
        open_input(endless)


def test_files_links_and_limits(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert read_input(tmp_path / "link", 5) == b"12345"
    with pytest.raises(ValueError, match="too large"):
        read_input(tmp_path / "a", 4)
    with pytest.raises(OSError, match="it is a folder"):
        open_input(tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "pipe"),
        ("batch", "pipe", "--input-format", "txt", "-m", "postcard", "-o", "out"),
        ("serve", "-m", "postcard", "--api-key-file", "pipe"),
    ],
)
def test_commands_refuse_a_pipe(command: tuple[str, ...], t2i: T2I, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = t2i(*command, timeout=30)
    assert done.returncode == 2
    assert "it is no regular file" in done.stderr


READERS = {
    "prices": "from t2i_cli.vertex.machine_types import load_prices; load_prices()",
    "Google's key": "from t2i_cli.net import google_credentials as c; c.find_credentials()",
    "the Hub's token": "from t2i_cli.hub import client; client.hub_api()",
    "the Hub's token, removed": "from t2i_cli.hub import account; account.remove_token()",
    "a model's index": (
        "import pathlib; from t2i_cli.hub.snapshot import Snapshot\n"
        "Snapshot(repo='x', commit='', folder=pathlib.Path(), sizes={}, obstacle=None).index()"
    ),
    "a model's config": (
        "import pathlib; from t2i_cli.models import diffusers_folder as f\n"
        "f.read_json_object(pathlib.Path('model_index.json'))"
    ),
}


@pytest.mark.parametrize("code", READERS.values(), ids=READERS)
def test_no_reader_waits_for_a_pipe(code: str, t2i_env: dict[str, str], tmp_path: Path) -> None:
    pipe = tmp_path / "model_index.json"
    os.mkfifo(pipe)
    variables = ("T2I_VERTEX_PRICES", "GOOGLE_APPLICATION_CREDENTIALS", "HF_TOKEN_PATH")
    guarded = (
        "from t2i_cli.errors import T2IError\n"
        f"try:\n    exec({code!r})\nexcept T2IError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", guarded],
        env=t2i_env | dict.fromkeys(variables, str(pipe)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "no regular file" in done.stdout
