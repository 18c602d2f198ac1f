"""Answers of Google that are not what they seem: refused tokens, redirects, drips, wrong clocks."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from t2i_cli.errors import RemoteError, T2IError, TimedOutError
from t2i_cli.net import google_credentials, google_http
from t2i_cli.net.google_credentials import TokenProvider
from t2i_cli.net.google_http import GoogleHttp, RefusedTokenError

ONCE = replace(google_http.GOOGLE_POLICY, retries=0)
Answer = Callable[[BaseHTTPRequestHandler], None]


class Credentials:
    """Credentials whose clock takes every token for valid; each new one has another number."""

    quota_project_id = None
    issued = 1

    @property
    def valid(self) -> bool:
        """By this machine's clock, which is behind."""
        return True

    def refresh(self, _request: object) -> None:
        """Issue another token."""
        self.issued += 1

    def apply(self, headers: dict[str, str]) -> None:
        """Authorise a call."""
        headers["Authorization"] = f"Bearer ya29.{self.issued}"


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The address of a server that answers every request by `answer`."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            answer(self)

        do_GET = do_POST = do_PUT = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def says(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    """Answer with a status, headers and a body."""
    handler.send_response_only(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.parametrize("accepted", [2, 99])
def test_a_token_that_google_takes_for_expired_is_renewed_once(accepted: int) -> None:
    seen: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(str(handler.headers["Authorization"]))
        is_good = seen[-1] == f"Bearer ya29.{accepted}"
        says(handler, 200 if is_good else 401, b'{"name": "x"}')

    credentials: Any = Credentials()
    with serving(answer) as url, GoogleHttp(TokenProvider(credentials), proxies=False) as google:
        if accepted == 2:
            assert google.call_url("POST", url) == {"name": "x"}
        else:
            with pytest.raises(RefusedTokenError):
                google.call_url("POST", url)
            with pytest.raises(RefusedTokenError):
                google.call_url("POST", url)  # the token is new: another is not asked for
    assert seen == ["Bearer ya29.1", "Bearer ya29.2", "Bearer ya29.2"][: 2 if accepted == 2 else 3]


def test_a_refused_token_stays_where_nothing_renews_it() -> None:
    assert not google_credentials.discard_token(None)
    assert not google_credentials.discard_token(lambda: {"Authorization": "Bearer x"})


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_an_error_and_takes_no_token_elsewhere(method: str, status: int) -> None:
    elsewhere: list[str] = []
    with (
        serving(lambda handler: elsewhere.append(handler.path)) as other,
        serving(lambda handler: says(handler, status, b"", Location=other)) as url,
        GoogleHttp(lambda: {"Authorization": "Bearer x"}, proxies=False, policy=ONCE) as google,
        pytest.raises(RemoteError),
    ):
        google.call_url(method, url)
    assert elsewhere == []


def test_an_answer_in_drips_ends_with_the_time() -> None:
    stop = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(200)
        handler.end_headers()
        while not stop.wait(0.05):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return

    with serving(drip) as url, GoogleHttp(None, seconds=0.3, proxies=False, policy=ONCE) as google:
        started = time.monotonic()
        with pytest.raises(TimedOutError):
            google.call_url("GET", url)
        assert time.monotonic() - started < 5
        stop.set()


def test_the_clock_of_what_refuses_is_not_google_s() -> None:
    wrong = "Fri, 01 Jan 2100 00:00:00 GMT"
    with (
        serving(lambda handler: says(handler, 407, b"log in", Date=wrong)) as url,
        GoogleHttp(None, proxies=False, policy=ONCE) as google,
    ):
        with pytest.raises(T2IError):
            google.call_url("GET", url)
        assert abs(google.server_time() - time.time()) < 60
