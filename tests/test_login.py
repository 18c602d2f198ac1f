"""`t2i login` and `t2i logout` as processes, against a fake Hub."""

import json
import stat
import time
from pathlib import Path

import pytest

from tests.conftest import T2I, Terminal
from tests.fakes.hub import FakeHub
from tests.fakes.oauth import ACCOUNT
from tests.fakes.vertex import FakeVertex, Fault, forbidden

TOKEN = "hf_goodgoodgood"  # noqa: S105 - a fake hub's


@pytest.fixture
def env(hub: FakeHub) -> dict[str, str]:
    """A process's way to a Hub that knows ann."""
    hub.users[TOKEN] = "ann"
    return hub.environment


def store(home: Path) -> Path:
    return home / "hf" / "token"


def test_a_good_token_is_checked_and_stored(
    t2i: T2I, home: Path, hub: FakeHub, env: dict[str, str]
) -> None:
    done = t2i("login", "--token-stdin", input=TOKEN + "\n", env=env)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "Logged in to the Hugging Face Hub as ann.\n"
    assert store(home).read_text() == TOKEN
    assert stat.S_IMODE(store(home).stat().st_mode) == 0o600
    assert {seen.path for seen in hub.requests} == {"/api/whoami-v2"}
    status = t2i("login", "--status", env=env)
    assert status.stdout == f"ann, by the token ann-token from {store(home)}\n"
    assert json.loads(t2i("login", "--status", "--json", env=env).stdout) == {
        "user": "ann",
        "token_name": "ann-token",
        "role": "read",
        "source": str(store(home)),
    }


def test_a_bad_token_is_not_stored(t2i: T2I, home: Path, env: dict[str, str]) -> None:
    done = t2i("login", "--token-stdin", "--json", input="hf_badbadbad", env=env)
    assert done.returncode == 3
    error = json.loads(done.stderr)["error"]
    assert error["message"] == "The Hub refuses this token."
    assert "badbadbad" not in done.stderr + done.stdout
    assert not store(home).exists()


@pytest.mark.parametrize("text", ["", "\n", "hf_se cret", "hf_se\x01cret", "hf_secrét"])
def test_what_is_no_token_is_refused_unseen(
    t2i: T2I, hub: FakeHub, env: dict[str, str], text: str
) -> None:
    done = t2i("login", "--token-stdin", input=text, env=env)
    assert done.returncode == 2
    assert "not a token" in done.stderr
    assert "cr" not in done.stderr.replace("huggingface.co/settings", "").replace("character", "")
    assert hub.requests == []


def test_no_network(t2i: T2I, home: Path) -> None:
    done = t2i("login", "--token-stdin", input=TOKEN)
    assert done.returncode == 6
    assert done.stderr == (
        "error: The Hub cannot be reached.\nhint: Check the network and try again.\n"
    )
    assert not store(home).exists()


def test_a_slow_hub(t2i: T2I, hub: FakeHub, env: dict[str, str]) -> None:
    hub.delay = 30
    start = time.monotonic()
    done = t2i("login", "--token-stdin", input=TOKEN, env=env | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"})
    assert done.returncode == 5
    assert "did not answer in time" in done.stderr
    assert time.monotonic() - start < 20


def test_a_busy_hub(t2i: T2I, hub: FakeHub, env: dict[str, str]) -> None:
    hub.status = 429
    assert t2i("login", "--token-stdin", input=TOKEN, env=env).returncode == 4


def test_without_a_terminal_it_does_not_ask(t2i: T2I, env: dict[str, str]) -> None:
    done = t2i("login", env=env)
    assert done.returncode == 2
    assert "--token-stdin" in done.stderr


def test_it_asks_without_echo(t2i_terminal: Terminal, home: Path, env: dict[str, str]) -> None:
    done = t2i_terminal("login", prompt="Token, not shown: ", answer=TOKEN, env=env)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Logged in to the Hugging Face Hub as ann." in done.stderr
    assert TOKEN not in done.stderr
    assert store(home).read_text() == TOKEN


def test_status_of_nobody(t2i: T2I, hub: FakeHub, env: dict[str, str]) -> None:
    done = t2i("login", "--status", "--json", env=env)
    assert done.returncode == 3
    assert "Nobody is logged in" in json.loads(done.stderr)["error"]["message"]
    assert hub.requests == []


def test_a_refused_token_is_named_by_its_place(t2i: T2I, env: dict[str, str]) -> None:
    done = t2i("login", "--status", env=env | {"HF_TOKEN": "hf_oldoldold"})
    assert done.returncode == 3
    assert "The Hub refuses the token from HF_TOKEN." in done.stderr
    assert "oldoldold" not in done.stderr


def test_the_variable_wins_and_is_said_to(t2i: T2I, hub: FakeHub, env: dict[str, str]) -> None:
    hub.users["hf_other"] = "bob"
    env = env | {"HF_TOKEN": "hf_other"}
    done = t2i("login", "--token-stdin", input=TOKEN, env=env)
    assert done.returncode == 0
    assert "warning: HF_TOKEN is set and wins over the token just stored." in done.stderr
    assert t2i("login", "--status", env=env).stdout.startswith("bob, ")
    out = t2i("logout", env=env)
    assert out.returncode == 0
    assert "warning: HF_TOKEN is set and still logs you in" in out.stderr


def test_logout_removes_the_token_in_use_and_no_other(
    t2i: T2I, home: Path, hub: FakeHub, env: dict[str, str]
) -> None:
    hub.users["hf_other"] = "bob"
    t2i("login", "--token-stdin", input="hf_other", env=env)
    t2i("login", "--token-stdin", input=TOKEN, env=env)
    done = t2i("logout", "--json", env=env)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"removed": "ann-token", "still_logged_in_by": None}
    assert not store(home).exists()
    left = (home / "hf" / "stored_tokens").read_text()
    assert "hf_other" in left
    assert TOKEN not in left
    assert t2i("logout", env=env).stderr == "There was no token to remove.\n"


def test_options_that_do_not_go_together(t2i: T2I) -> None:
    assert t2i("login", "--status", "--token-stdin").returncode == 2
    assert t2i("login", "--status", "vertex").returncode == 2
    assert t2i("login", TOKEN).returncode == 2


def test_vertex(t2i: T2I, vertex: FakeVertex) -> None:
    done = t2i("login", "vertex", env=vertex.environment)
    assert done.returncode == 0
    assert done.stdout == (
        f"account: {ACCOUNT}\nproject: gallery\n"
        f"found: {vertex.key}, named by GOOGLE_APPLICATION_CREDENTIALS\n"
        "may: predict, deploy, upload, remove, service account, scheduler\n"
    )
    vertex.granted = {"aiplatform.endpoints.predict"}
    record = json.loads(t2i("login", "vertex", "--json", env=vertex.environment).stdout)
    assert record["project"] == "gallery"
    assert "predict" not in record["able"]["missing"]
    assert record["able"]["missing"]["service account"] == ["iam.serviceAccounts.actAs"]
    assert "secret" not in done.stdout + done.stderr


def test_vertex_without_credentials(t2i: T2I) -> None:
    done = t2i("login", "vertex")
    assert done.returncode == 3
    assert "There are no Google credentials." in done.stderr


def test_vertex_where_permissions_cannot_be_told(t2i: T2I, vertex: FakeVertex) -> None:
    fault = forbidden("resourcemanager.projects.get")
    vertex.faults.append(Fault(where="testIamPermissions", status=403, body=fault.body))
    done = t2i("login", "vertex", env=vertex.environment)
    assert done.returncode == 0
    assert "may: cannot be told: The permission resourcemanager.projects.get is missing, or" in (
        done.stdout
    )
