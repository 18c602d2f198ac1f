"""The one HTTP client: for several threads, with limits, its errors told as ours."""

import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from socket import SHUT_RDWR
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakSet

import httpx2

from t2i_cli import __version__
from t2i_cli.errors import InputError, RemoteError, T2IError, TimedOutError
from t2i_cli.net.retry import RetryableError, parse_retry_after

CONNECT_TIMEOUT = 10.0
"""Seconds to find and reach a server, which is not what takes time in making an image."""
MAX_RESPONSE_BYTES = 256 * 2**20
"""Bytes of one answer."""

_NETWORK = "Check that it runs, its address, and the network."


@dataclass(frozen=True, kw_only=True)
class HttpResponse:
    """What a server answered, and the seconds it took."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def retry_after(self) -> float | None:
        """The seconds that Retry-After asks to wait (RFC 9110, section 10.2.3)."""
        return parse_retry_after(self.headers)

    def json(self) -> object:
        """The body as JSON; raises RemoteError."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise RemoteError(
                "The server's answer makes no sense: it is no JSON.",
                hint="Is this the address of its API?",
            ) from error


@dataclass(frozen=True, kw_only=True)
class FailedCall:
    """A call that brought no answer: what httpx2 raised, and of what."""

    error: httpx2.HTTPError | httpx2.InvalidURL
    method: str
    host: str
    timeout: float


Translate = Callable[[FailedCall], Exception]
"""Makes of a failed call a RetryableError where another try may help, or a T2IError."""


class HttpClient:
    """Asks servers over HTTP; may be used by several threads.

    `translate` says what failed calls mean; `proxies` whether the environment's proxies and
    certificates count, which they do not for this very machine.
    """

    def __init__(
        self,
        url: str,
        connections: int,
        *,
        translate: Translate | None = None,
        proxies: bool | None = None,
    ) -> None:
        self._translate = translate or translate_error
        self._client = _new_client(
            # What is meant for this very machine must not go through a proxy.
            trust_env=not is_loopback_url(url) if proxies is None else proxies,
            # A redirect could carry a key to another host.
            follow_redirects=False,
            headers={"User-Agent": f"t2i/{__version__}"},
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=connections),
        )
        self._streams: WeakSet[object] = WeakSet()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: object = None,
        content: bytes | None = None,
        timeout: float,
        whole: bool = True,
    ) -> HttpResponse:
        """The server's answer, whatever its status.

        `timeout` are the seconds to wait for all of it, or without `whole` for each step of it.
        Raises what `translate` makes of a failed call, or RemoteError.
        """
        started = time.monotonic()
        with self.stream(
            method,
            url,
            headers=headers,
            params=params,
            json=json,
            content=content,
            timeout=timeout,
        ) as response:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_RESPONSE_BYTES:
                    raise RemoteError(
                        f"The answer of {url_host(url)} has more than {MAX_RESPONSE_BYTES:,} bytes."
                    )
                if whole and time.monotonic() - started > timeout:
                    raise httpx2.ReadTimeout("")
        return HttpResponse(
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=bytes(body),
            seconds=time.monotonic() - started,
        )

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: object = None,
        content: bytes | None = None,
        timeout: float,
    ) -> Iterator[httpx2.Response]:
        """The server's answer, whose body is read in the block; `timeout` is for each step.

        Raises what `translate` makes of a failed call, while the body is read, too.
        """
        try:
            with self._client.stream(
                method,
                url,
                params=params,
                json=json,
                content=content,
                headers=dict(headers or {}),
                timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
                extensions={"trace": self._trace},
            ) as response:
                yield response
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            failed = FailedCall(error=error, method=method, host=url_host(url), timeout=timeout)
            raise self._translate(failed) from error

    def abort(self) -> None:
        """Break off every call, so that the server can stop its work and no thread waits."""
        for stream in list(self._streams):
            with suppress(OSError, AttributeError):
                # Closing a socket would not wake a thread that reads from it.
                stream.get_extra_info("socket").shutdown(SHUT_RDWR)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the connections; may be called twice."""
        self._client.close()

    def _trace(self, event: str, info: Mapping[str, object]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._streams.add(info["return_value"])


def is_loopback_url(url: str) -> bool:
    """Whether the URL leads to this machine."""
    host = url_host(url)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_host(url: str) -> str:
    """The host of a URL, for people; the rest of it may be signed."""
    try:
        return urlsplit(url).hostname or "the server"
    except ValueError:
        return "the server"


def _new_client(**settings: Any) -> httpx2.Client:  # noqa: ANN401 - handed on to httpx2
    """The one place that makes httpx2's client, which reads proxies and certificates here."""
    return httpx2.Client(**settings)


def translate_error(failed: FailedCall) -> RetryableError | T2IError:
    """What a failed call means where nothing is known of the server."""
    host = failed.host
    match failed.error:
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol():
            return InputError(f"The address of {host} is no address of a server.", field="url")
        case httpx2.ConnectTimeout():
            return RetryableError(RemoteError(f"{host} cannot be reached.", hint=_NETWORK))
        case httpx2.TimeoutException():
            return TimedOutError(
                f"{host} did not answer within {failed.timeout:.3g} s.",
                hint="--timeout allows more.",
            )
        case httpx2.ConnectError() if _is_certificate(failed.error):
            return RemoteError(
                f"The certificate of {host} cannot be trusted.",
                hint="SSL_CERT_FILE names the certificates to trust.",
            )
        case httpx2.ConnectError():
            return RetryableError(RemoteError(f"{host} cannot be reached.", hint=_NETWORK))
        case httpx2.ProxyError():
            return RemoteError(
                f"The proxy on the way to {host} refuses.", hint="HTTPS_PROXY and NO_PROXY set it."
            )
    return RetryableError(
        RemoteError(f"The connection to {host} broke.", hint="Look into the server's log.")
    )


def _is_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
