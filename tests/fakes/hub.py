"""A Hugging Face Hub on loopback, speaking what huggingface_hub 2.4 asks of the real one.

It answers whoami-v2, model info, trees and resolve; large files are redirected to another host, as
the real Hub sends them to its content network, where no token may arrive. It can be told to fail.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".gguf", ".ckpt")
"""What the real Hub keeps as large files, addressed by SHA-256."""


@dataclass
class Repo:
    """One model repository with a single commit, known as `main` and as the tag `v1`."""

    files: dict[str, bytes]
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    """The users who accepted the licence of a gated repository."""
    claimed: dict[str, int] = field(default_factory=dict)
    """Sizes in bytes that are told of files in place of the true ones."""

    @property
    def commit(self) -> str:
        """The commit's hash, which depends on every file."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    @classmethod
    def from_folder(cls, folder: Path, **options: Any) -> "Repo":  # noqa: ANN401
        """A repository with the files of a local folder."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return cls(files=files, **options)


@dataclass(frozen=True)
class Seen:
    """One request that arrived."""

    method: str
    path: str
    token: str | None
    range: str | None


@dataclass
class FakeHub:
    """The Hub's state: fill `repos` and `users`, set the failures, look at `requests`."""

    repos: dict[str, Repo] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    """Token → user name."""
    requests: list[Seen] = field(default_factory=list)
    delay: float = 0.0
    """Seconds before each answer."""
    status: int | None = None
    """Answer everything with this error."""
    cut: set[str] = field(default_factory=set)
    """Files whose download breaks in the middle, and whose next requests fail with error 500."""
    drip: float = 0.0
    """Seconds between the pieces of a large file."""
    url: str = ""
    port: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """What points a process at this hub."""
        return {"HF_ENDPOINT": self.url}

    def fetched(self) -> list[str]:
        """The files whose content was asked for, in order, by name or SHA-256."""
        return [
            seen.path.split("/resolve/")[-1].split("/", 1)[-1]
            for seen in self.requests
            if seen.method == "GET" and ("/resolve/" in seen.path or seen.path.startswith("/cdn/"))
        ]


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A hub that answers on a free port until the block ends."""
    hub = FakeHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.port = server.server_port
    hub.url = f"http://127.0.0.1:{hub.port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        token = authorization.removeprefix("Bearer ") if authorization else None
        self.state.requests.append(Seen(self.command, path, token, self.headers.get("Range")))
        time.sleep(self.state.delay)
        if self.state.status:
            self._error(self.state.status, "", "The fake hub was told to fail.")
            return
        routes: tuple[tuple[str, Callable[..., None]], ...] = (
            (r"/api/whoami-v2", self._whoami),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self._tree),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            (r"/cdn/([0-9a-f]{64})", self._content_network),
        )
        for pattern, answer in routes:
            if match := re.fullmatch(pattern, path):
                answer(token, *match.groups())
                return
        self._error(404, "", "Not Found")

    def _whoami(self, token: str | None) -> None:
        if token not in self.state.users:
            self._error(401, "", "Invalid credentials in Authorization header")
            return
        name = self.state.users[token]
        self._json(
            {
                "type": "user",
                "name": name,
                "fullname": name,
                "auth": {
                    "type": "access_token",
                    "accessToken": {"displayName": f"{name}-token", "role": "read"},
                },
            }
        )

    def _repo(self, token: str | None, name: str, revision: str | None) -> Repo | None:
        """The repository, or None after an error was sent."""
        if token is not None and token not in self.state.users:
            self._error(401, "", "Invalid credentials in Authorization header")
            return None
        repo = self.state.repos.get(name)
        if repo is None:
            # Nobody learns without a token which private repositories exist.
            status = 401 if token is None else 404
            self._error(status, "RepoNotFound", "Repository not found")
            return None
        if revision not in {None, "main", "v1", repo.commit}:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo

    def _info(self, token: str | None, name: str, revision: str | None) -> None:
        if repo := self._repo(token, name, revision):
            gated = "auto" if repo.gated else False
            siblings = [{"rfilename": path} for path in sorted(repo.files)]
            self._json({"id": name, "sha": repo.commit, "gated": gated, "siblings": siblings})

    def _tree(self, token: str | None, name: str, revision: str) -> None:
        if repo := self._repo(token, name, revision):
            entries: list[dict[str, object]] = []
            for path, content in sorted(repo.files.items()):
                entry: dict[str, object] = {
                    "type": "file",
                    "path": path,
                    "size": repo.claimed.get(path, len(content)),
                    "oid": _git_hash(content),
                }
                if path.endswith(LARGE):
                    sha = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": sha, "size": entry["size"], "pointerSize": 134}
                entries.append(entry)
            self._json(entries)

    def _resolve(self, token: str | None, name: str, revision: str, path: str) -> None:
        repo = self._repo(token, name, revision)
        if repo is None:
            return
        commit = {"X-Repo-Commit": repo.commit}
        if repo.gated and (token is None or self.state.users[token] not in repo.readers):
            message = f"Access to model {name} is restricted."
            self._error(401 if token is None else 403, "GatedRepo", message, commit)
            return
        content = repo.files.get(path)
        if content is None:
            self._error(404, "EntryNotFound", "Entry not found", commit)
        elif path in self.state.cut and f"{path} was cut" in self.state.cut:
            self._error(500, "", "The fake hub was told to fail.", commit)
        elif path.endswith(LARGE):
            sha = hashlib.sha256(content).hexdigest()
            headers = commit | {
                "X-Linked-Size": str(repo.claimed.get(path, len(content))),
                "X-Linked-Etag": f'"{sha}"',
                "Location": f"http://localhost:{self.state.port}/cdn/{sha}",
                "Content-Length": "0",
            }
            self._send(HTTPStatus.FOUND, headers, b"")
        else:
            self._content(path, content, commit | {"ETag": f'"{_git_hash(content)}"'})

    def _content_network(self, token: str | None, sha: str) -> None:
        for repo in self.state.repos.values():
            for path, content in repo.files.items():
                if hashlib.sha256(content).hexdigest() == sha:
                    self._content(path, content, {"ETag": f'"{sha}"'})
                    return
        self._error(404, "", "Not Found")

    def _content(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        start = 0
        status = HTTPStatus.OK
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, size = int(match[1]), len(content)
            status = HTTPStatus.PARTIAL_CONTENT
            content = content[: int(match[2]) + 1] if match[2] else content
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{size}"}
        if path in self.state.cut and self.command == "GET":
            if f"{path} was cut" in self.state.cut:
                self._error(500, "", "The fake hub was told to fail.")
                return
            self.state.cut.add(f"{path} was cut")
            headers |= {"Content-Length": str(len(content) - start)}
            self._send(status, headers, content[start : (start + len(content)) // 2])
            self.close_connection = True
            return
        body = content[start:]
        headers |= {"Content-Length": str(len(body))}
        self._send(status, headers, body)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self._send(HTTPStatus.OK, headers, body)

    def _error(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        body = json.dumps({"error": message}).encode()
        named = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        length = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self._send(HTTPStatus(status), (headers or {}) | named | length, body)

    def _send(self, status: HTTPStatus, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for start in range(0, len(body), 65536):
                self.wfile.write(body[start : start + 65536])
                time.sleep(self.state.drip)
        except ConnectionError:
            # The client went away, which some tests want.
            self.close_connection = True


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
