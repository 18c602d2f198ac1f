"""The HTTP client: thread-safe, with size and time limits, raising T2IError."""

import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakSet

import httpx2

from t2i_cli import __version__, library_environment
from t2i_cli.errors import InputError, RemoteError, T2IError, TimedOutError, os_reason
from t2i_cli.files.state_files import check_regular, parse_json
from t2i_cli.net.retry import RetryableError, parse_retry_after
from t2i_cli.net.unreachable import UnreachableError
from t2i_cli.terminal.console import console

CONNECT_TIMEOUT = 10.0
"""Seconds to connect, however long the timeout of the whole call is."""
MAX_RESPONSE_BYTES = 256 * 2**20
"""Bytes of one response body."""

_LIKE_A_KEY = re.compile(r"(?=[A-Za-z_=]*\d)[A-Za-z0-9_=]{20,}")
"""Long runs of letters and digits; a signed URL may have its signature in the path."""
_NETWORK = "Check that it runs, its address, and the network."


@dataclass(frozen=True, kw_only=True)
class HttpResponse:
    """A server's response and the seconds it took. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def retry_after(self) -> float | None:
        """The seconds that Retry-After asks to wait (RFC 9110, section 10.2.3)."""
        return parse_retry_after(self.headers)

    def json(self) -> object:
        """The parsed JSON body. Raises RemoteError."""
        try:
            return parse_json(self.body)
        except ValueError as error:
            raise RemoteError(
                "The server's answer makes no sense: it is no JSON.",
                hint="Is this the address of its API?",
            ) from error


@dataclass(frozen=True, kw_only=True)
class FailedCall:
    """A call without a response: what httpx2 raised, and for which call.

    `host` is its host and port, `timeout` in seconds.
    """

    error: httpx2.HTTPError | httpx2.InvalidURL | UnicodeError
    method: str
    host: str
    timeout: float

    @property
    def never_sent(self) -> bool:
        """Whether it failed before anything of it was sent, so that it cannot have run."""
        unsent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
        return isinstance(self.error, unsent)


Translate = Callable[[FailedCall], Exception]
"""Maps a failed call to a RetryableError where a retry may help, or else to a T2IError."""


class HttpClient:
    """Sends HTTP requests; thread-safe.

    `translate` maps failed calls to errors. `proxies`: whether the environment's proxies and
    certificates apply; by default they do unless `url` is a loopback address. `ca_file`: a PEM file
    with the certificates to trust, and no others; raises InputError for one that is none.
    """

    def __init__(
        self,
        url: str,
        connections: int,
        *,
        translate: Translate | None = None,
        proxies: bool | None = None,
        ca_file: str | None = None,
    ) -> None:
        self._translate = translate or translate_error
        self._client = _new_client(
            verify=True if ca_file is None else trusted_certificates(ca_file),
            # Requests to loopback must not go through a proxy.
            trust_env=not is_loopback_url(url) if proxies is None else proxies,
            # A redirect could send the API key to another host.
            follow_redirects=False,
            headers={"User-Agent": f"t2i/{__version__}"},
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=connections),
        )
        self._streams: WeakSet[object] = WeakSet()
        self.aborted = False

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
        total: bool = True,
    ) -> HttpResponse:
        """The server's response, whatever its status.

        `timeout` is in seconds: for the whole response, or without `total` for each network
        operation, and for the body. Raises the error that `translate` returns for a failed call,
        and RemoteError for a body of more than MAX_RESPONSE_BYTES.
        """
        started = time.monotonic()
        with self.stream(
            method, url, headers=headers, params=params, json=json, content=content, timeout=timeout
        ) as response:
            begun = started if total else time.monotonic()
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_RESPONSE_BYTES:
                    raise RemoteError(
                        f"The answer of {host_and_port(url)} has more than "
                        f"{MAX_RESPONSE_BYTES:,} bytes."
                    )
                if time.monotonic() - begun > timeout:
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
        """The server's response, whose body is read inside the block.

        `timeout` is in seconds, for each network operation. Raises the error that `translate`
        returns for a failed call, also while the body is read.
        """
        started = time.monotonic()
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
                trace_request(method, url, str(response.status_code), started)
        # The name of a host in a URL or a redirect is encoded late, and may be none (UnicodeError).
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            trace_request(method, url, type(error).__name__, started)
            failed = FailedCall(
                error=error, method=method, host=host_and_port(url), timeout=timeout
            )
            raise self._translate(failed) from error

    def abort(self) -> None:
        """Disconnect every call, now and later: servers can stop working, threads stop waiting."""
        self.aborted = True
        for stream in list(self._streams):
            with suppress(OSError, AttributeError):
                # close() would not wake a thread that is blocked in a read.
                stream.get_extra_info("socket").shutdown(SHUT_RDWR)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the connections; may be called twice."""
        self._client.close()

    def _trace(self, event: str, info: Mapping[str, object]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._streams.add(info["return_value"])
            if self.aborted:
                self.abort()


def is_loopback_url(url: str) -> bool:
    """Whether the URL's host is localhost or a loopback address."""
    host = ""
    try:
        host = urlsplit(url).hostname or ""
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_and_port(url: str) -> str:
    """The host and port of a URL, for messages; its path and query may hold a signature.

    Without a port for https:// on its usual one.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (80 if parts.scheme == "http" else None)
    except ValueError:
        return "the server"
    if not parts.hostname:
        return "the server"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return host if port is None else f"{host}:{port}"


def trace_request(method: str, url: str, result: str, started: float) -> None:
    """Print a request and what came of it, with --verbose only; without what may be a secret."""
    console.trace(f"{method} {shown_url(url)}: {result} in {time.monotonic() - started:.2f} s")


def shown_url(url: str) -> str:
    """The URL without user, password and query, and without what looks like a key in its path."""
    try:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "the server"
    return f"{parts.scheme}://{host}{port}{_LIKE_A_KEY.sub('…', parts.path)}"


def _new_client(**settings: Any) -> httpx2.Client:  # noqa: ANN401 - handed on to httpx2
    """The only call of httpx2's constructor, which reads proxies and certificates.

    Raises InputError for those of the environment that cannot be used.
    """
    if settings.get("trust_env", True):
        library_environment.require_valid("http")
    return httpx2.Client(**settings)


def translate_error(failed: FailedCall) -> RetryableError | T2IError:
    """The error for a failed call to any server."""
    host = failed.host
    match failed.error:
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol() | UnicodeError():
            return InputError(f"The address of {host} is no address of a server.", field="url")
        case httpx2.ConnectTimeout():
            return RetryableError(UnreachableError(f"{host} cannot be reached.", hint=_NETWORK))
        case httpx2.TimeoutException():
            return TimedOutError(
                f"{host} did not answer within {failed.timeout:.3g} s.",
                hint="--timeout allows more.",
            )
        case httpx2.ConnectError() if is_certificate_error(failed.error):
            return certificate_error(host)
        case httpx2.ConnectError():
            return RetryableError(UnreachableError(f"{host} cannot be reached.", hint=_NETWORK))
        case httpx2.ProxyError():
            return RemoteError(
                f"The proxy on the way to {host} refuses.", hint="HTTPS_PROXY and NO_PROXY set it."
            )
    broken = UnreachableError(
        f"The connection to {host} broke.", hint="Look into the server's log."
    )
    return RetryableError(broken)


def trusted_certificates(ca_file: str) -> ssl.SSLContext:
    """TLS with the certificates of a PEM file, and no others. Raises InputError."""
    try:
        check_regular(Path(ca_file), follow_links=True)
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        unreadable = isinstance(error, OSError) and not isinstance(error, ssl.SSLError)
        reason = os_reason(error) if unreadable else "it holds none"  # type: ignore[arg-type]
        raise InputError(
            f"Cannot read certificates in PEM from {ca_file}: {reason}.", field="ca_file"
        ) from error


def certificate_error(host: str) -> RemoteError:
    """The error for a server whose certificate is not of those to trust, or for another name."""
    return RemoteError(
        f"The certificate of {host} cannot be trusted.",
        hint="SSL_CERT_FILE names the certificates to trust; for Vertex AI --ca-file does, too.",
    )


def is_certificate_error(error: BaseException | None) -> bool:
    """Whether a connection failed for a certificate."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
