"""Google's token issue on loopback: OAuth 2.0 for a key or a person, and impersonation."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ACCOUNT = "painter@gallery.iam.gserviceaccount.com"
AUTHORIZED = {"Authorization": "Bearer ya29.test"}
"""The headers of a call with a token that the fakes take."""


@dataclass
class FakeOAuth:
    """The state: which answer to give, and what was asked."""

    url: str = ""
    status: int = 200
    delay: float = 0.0
    id_token: str | None = None
    requests: list[str] = field(default_factory=list)

    @property
    def token_uri(self) -> str:
        """Where tokens are issued."""
        return f"{self.url}/token"

    def key_file(self, folder: Path) -> Path:
        """A service account's key file, of a throwaway key, that is good for this server only."""
        record = {
            "type": "service_account",
            "project_id": "gallery",
            "private_key_id": "1",
            "private_key": _private_key(),
            "client_email": ACCOUNT,
            "token_uri": self.token_uri,
        }
        return _written(folder / "key.json", record)

    def person_file(self, folder: Path, quota_project: str | None = None) -> Path:
        """What `gcloud auth application-default login` leaves, and `set-quota-project` adds."""
        record = {
            "type": "authorized_user",
            "client_id": "id",
            "client_secret": "client-secret",
            "refresh_token": "refresh-secret",
        } | ({"quota_project_id": quota_project} if quota_project else {})
        return _written(folder / "person.json", record)


@contextmanager
def running_oauth() -> Iterator[FakeOAuth]:
    """A token server on a free port until the block ends."""
    state = FakeOAuth()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.requests.append(self.path)
            time.sleep(state.delay)
            answer: dict[str, object] = {"error": "invalid_grant", "error_description": "Bad."}
            if state.status == 200:
                answer = {"access_token": "ya29.secret", "expires_in": 3600}
                if state.id_token:
                    answer["id_token"] = state.id_token
                if "generateAccessToken" in self.path:
                    answer = {"accessToken": "ya29.other", "expireTime": "2999-01-01T00:00:00Z"}
            body = json.dumps(answer).encode()
            self.send_response(state.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(BrokenPipeError):  # the client that would not wait
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@cache
def _private_key() -> str:
    """A throwaway key as PEM; one does for all tests, for it takes long to make."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem.decode()


def _written(file: Path, record: dict[str, str]) -> Path:
    file.write_text(json.dumps(record))
    return file
