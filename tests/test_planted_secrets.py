"""Secrets planted wherever t2i finds one, and services that quote them: no command tells one."""

import base64
import json
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from tests.amounts import full
from tests.conftest import T2I
from tests.fakes.oauth import FakeOAuth
from tests.test_known_secrets import leaks

_CHANCE = random.Random(6)  # noqa: S311 - nobody's secrets


def secret(begin: str = "") -> str:
    """A secret that no other text has a piece of."""
    return begin + base64.urlsafe_b64encode(_CHANCE.randbytes(24)).decode()


SECRETS = {
    "HF_TOKEN": secret("hf_"),
    "token file": secret("hf_"),
    "standard input": secret("hf_"),
    "T2I_HTTP_API_KEY": secret("sk-"),
    "settings file": secret("sk-"),
    "T2I_API_KEY": secret(),
    "key file": secret(),
    "password of a proxy": secret(),
    "AWS_SECRET_ACCESS_KEY": secret(),
    "refresh token": secret("1//"),
    "client secret": secret("GOCSPX-"),
    "private key": "",
}
"""By where each is planted; the private key is made with its file."""
BUG = """
import base64, os
told = " ".join(f"{value} {base64.b64encode(value.encode()).decode()}"
                for value in os.environ.values())
raise KeyError("no header: " + told)
"""
"""A module in place of one that t2i imports late."""
REDIRECT = """
import os, google.oauth2.credentials as credentials
credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT = os.environ["ENDPOINT_OF_TOKENS"]
"""
"""A sitecustomize that sends Google's refresh tokens to loopback."""


class Quoting(BaseHTTPRequestHandler):
    """Answers every request with all that it holds, in plain and in base64, and an error.

    Below /open there is a list of models.
    """

    status = 401
    seen: list[str]

    def do_GET(self) -> None:
        """Quote the request."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode("latin-1")
        self.seen.append(f"{self.path} {dict(self.headers.items())} {body}")
        shown = [one for name, one in self.headers.items() if name.endswith("uthorization")]
        # What tells most comes first, as messages may be cut.
        parts = [*shown, body, self.seen[-1]]
        told = " ".join(f"{one} {base64.b64encode(one.encode()).decode()}" for one in parts)
        answer = json.dumps({"error": {"message": told, "code": told}, "error_description": told})
        status = self.status
        if self.path == "/open/v1/models":
            status, answer = 200, json.dumps({"data": [{"id": "painter", "owned_by": told}]})
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Error-Message", re.sub(r"[^ -~]", " ", told))
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.encode())

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def seen() -> list[str]:
    """What the quoting service was sent."""
    return []


@pytest.fixture(params=[400, full(401), full(500), full(200)])
def service(request: pytest.FixtureRequest, seen: list[str]) -> Iterator[str]:
    """The quoting service's address."""
    handler = type("Handler", (Quoting,), {"status": request.param, "seen": seen})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def planted(home: Path, tmp_path: Path, service: str) -> dict[str, str]:
    """The environment of every command, with files beside it."""
    for name, key in (("hf/token", "token file"), ("key", "key file")):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(SECRETS[key])
        (home / name).chmod(0o600)
    (home / "t2i.toml").write_text(f'http_api_key = "{SECRETS["settings file"]}"\n')
    account = json.loads(FakeOAuth(url=service).key_file(home).read_text())
    SECRETS["private key"] = "".join(account["private_key"].splitlines()[1:-1])
    person = {
        "type": "authorized_user",
        "client_id": "id",
        "client_secret": SECRETS["client secret"],
        "refresh_token": SECRETS["refresh token"],
    }
    (home / "person.json").write_text(json.dumps(person))
    for folder, name, text in (
        ("bug", "platformdirs.py", BUG),
        ("google", "sitecustomize.py", REDIRECT),
    ):
        (home / folder).mkdir()
        (home / folder / name).write_text(text)
    (tmp_path / "rows.txt").write_text("a red star\na blue star\n")
    return {
        **{"HF_ENDPOINT": service, "T2I_URL": f"{service}/v1", "ENDPOINT_OF_TOKENS": service},
        **{"T2I_API_KEY": SECRETS["T2I_API_KEY"]},
        **{"AWS_SECRET_ACCESS_KEY": SECRETS["AWS_SECRET_ACCESS_KEY"]},
    }


def remote(home: Path, file: str) -> dict[str, str]:
    """Google's credentials."""
    return {"GOOGLE_APPLICATION_CREDENTIALS": str(home / file), "PYTHONPATH": str(home / "google")}


def runs(home: Path, service: str) -> dict[str, tuple[list[str], dict[str, str], str, str | None]]:
    """Commands by name: arguments, environment, input, and which secret the service must see."""
    http = ["--backend", "http", "--url", f"{service}/v1", "--retries", "0", "-m", "painter"]
    proxy = f"http://bob:{SECRETS['password of a proxy']}@{service.partition('//')[2]}"
    token, key = (
        {"HF_TOKEN": SECRETS["HF_TOKEN"]},
        {"T2I_HTTP_API_KEY": SECRETS["T2I_HTTP_API_KEY"]},
    )
    pull = ["models", "pull", "painter/gated"]
    endpoint = ["--project", "painter", "--region", "us-central1", "--api-endpoint", service]
    return {
        "generate": (["generate", "a star", *http], key, "", "T2I_HTTP_API_KEY"),
        "generate by settings": (["generate", "a star", *http], {}, "", "settings file"),
        "batch": (["batch", "rows.txt", *http, "-o", "out"], key, "", "T2I_HTTP_API_KEY"),
        "pull": (pull, token, "", "HF_TOKEN"),
        "pull by file": (pull, {}, "", "token file"),
        "proxy": (
            pull,
            {**token, "HF_ENDPOINT": "http://hub.example", "HTTP_PROXY": proxy},
            "",
            "password of a proxy",
        ),
        "broken proxy": (pull, {"ALL_PROXY": f"{proxy}x"}, "", None),
        "login": (["login", "--token-stdin"], {}, SECRETS["standard input"], "standard input"),
        "login status": (["login", "--status"], token, "", "HF_TOKEN"),
        "doctor": (["doctor"], {**token, **key, **remote(home, "key.json")}, "", None),
        "config": (["config", "list"], key, "", None),
        "a bug": (
            ["worker", "status"],
            {**token, **key, "PYTHONPATH": str(home / "bug")},
            "",
            None,
        ),
        "account": (["remote", "list", *endpoint], remote(home, "key.json"), "", None),
        "person": (["remote", "list", *endpoint], remote(home, "person.json"), "", "refresh token"),
    }


def found(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Which secret is told in which text."""
    return [
        (name, place)
        for place, text in texts.items()
        for name, value in SECRETS.items()
        if leaks(text, value)
    ]


def written(folder: Path) -> dict[str, str]:
    """Each file of a folder as text, but those that were planted."""
    return {
        str(path.relative_to(folder)): path.read_bytes().decode("latin-1")
        for path in folder.rglob("*")
        if path.is_file() and folder / "home" not in path.parents
    }


NAMES = list(runs(Path(), "http://host"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output", ["--json", full("text")])
def test_no_command_tells_a_secret(
    t2i: T2I,
    home: Path,
    tmp_path: Path,
    planted: dict[str, str],
    service: str,
    seen: list[str],
    name: str,
    output: str,
) -> None:
    arguments, env, text, sent = runs(home, service)[name]
    talkative = ["-v"] if arguments[0] in ("generate", "batch") else []
    shown = ["--json"] if output == "--json" else talkative
    done = t2i(*arguments, *shown, env=planted | env, input=text)
    assert done.stderr or done.stdout
    texts = {"stdout": done.stdout, "stderr": done.stderr, **written(tmp_path)}
    assert found(texts) == [], texts
    if sent:  # or the service could not have quoted it
        assert any(leaks(one, SECRETS[sent]) for one in known(seen)), (done, seen)


def test_a_server_tells_none(
    t2i_env: dict[str, str], tmp_path: Path, planted: dict[str, str], service: str, seen: list[str]
) -> None:
    """Neither to clients, with its key or another, nor in its log; its backend quotes its key."""
    key = {"T2I_HTTP_API_KEY": SECRETS["T2I_HTTP_API_KEY"]}
    command = [sys.executable, "-m", "t2i_cli", "serve", "-m", "painter", "--port", "0", "-v"]
    command += [
        "--backend",
        "http",
        "--url",
        f"{service}/open/v1",
        "--retries",
        "0",
        "--log-prompts",
    ]
    command += ["--api-key-file", str(tmp_path / "home/key")]
    del planted["T2I_API_KEY"]
    texts, log = {}, tmp_path / "log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command, env=t2i_env | planted | key, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            for number, shown in enumerate((SECRETS["key file"], SECRETS["token file"])):
                headers = {"Authorization": f"Bearer {shown}"}
                with httpx2.Client(base_url=url, headers=headers, timeout=60) as client:
                    for path in ("/predict", "/v1/images/generations"):
                        made = client.post(path, json={"prompt": "a star"})
                        texts[f"{number} {path}"] = f"{made.headers} {made.text}"
                    for path in ("/v1/models", "/t2i/v1/model", "/metrics", "/nothing", "/"):
                        answer = client.get(path)
                        texts[f"{number} {path}"] = f"{answer.headers} {answer.text}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    texts["log"] = log.read_text()
    assert found(texts) == [], texts
    asked = [one for one in seen if one.startswith("/open/v1/images/generations")]
    assert any(leaks(one, SECRETS["T2I_HTTP_API_KEY"]) for one in asked), texts


def known(seen: list[str]) -> list[str]:
    """What the service was sent, as text and with what stands there in base64."""
    coded = [part for one in seen for part in re.findall(r"Basic ([\w+/=]+)", one)]
    return seen + [base64.b64decode(part).decode() for part in coded]
