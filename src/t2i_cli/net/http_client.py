"""HTTP as backends need it: one client for several threads, its errors told as ours."""

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from socket import SHUT_RDWR
from urllib.parse import urlsplit
from weakref import WeakSet

import httpx2

from t2i_cli import __version__
from t2i_cli.errors import InputError, RemoteError, TimedOutError
from t2i_cli.net.retry import RetryableError

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
        value = self.headers.get("retry-after", "").strip()
        if value.replace(".", "", 1).isdecimal():
            return float(value)
        from email.utils import parsedate_to_datetime

        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None

    def json(self) -> object:
        """The body as JSON; raises RemoteError."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise RemoteError(
                "The server's answer makes no sense: it is no JSON.",
                hint="Is this the address of its API?",
            ) from error


class HttpClient:
    """Asks servers over HTTP; may be used by several threads."""

    def __init__(self, url: str, connections: int) -> None:
        self._client = httpx2.Client(
            # What is meant for this very machine must not go through a proxy.
            trust_env=not is_loopback_url(url),
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
        json: object = None,
        timeout: float,
    ) -> HttpResponse:
        """The server's answer, whatever its status.

        `timeout` are the seconds to wait for it. Raises Again where the connection failed, or
        TimedOutError, RemoteError or InputError.
        """
        started = time.monotonic()
        host = url_host(url)
        with (
            _translated(host, timeout),
            self._client.stream(
                method,
                url,
                json=json,
                headers=dict(headers or {}),
                timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
                extensions={"trace": self._trace},
            ) as response,
        ):
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_RESPONSE_BYTES:
                    raise RemoteError(
                        f"The answer of {host} has more than {MAX_RESPONSE_BYTES:,} bytes."
                    )
                if time.monotonic() - started > timeout:
                    raise httpx2.ReadTimeout("")
        return HttpResponse(
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=bytes(body),
            seconds=time.monotonic() - started,
        )

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


@contextmanager
def _translated(host: str, timeout: float) -> Iterator[None]:
    """Turn what the HTTP client raises into Again where another try may help, or a T2IError."""
    try:
        yield
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise InputError(
            f"The address of {host} is no address of a server.", field="url"
        ) from error
    except httpx2.ConnectTimeout as error:
        raise RetryableError(RemoteError(f"{host} cannot be reached.", hint=_NETWORK)) from error
    except httpx2.TimeoutException as error:
        raise TimedOutError(
            f"{host} did not answer within {timeout:.3g} s.", hint="--timeout allows more."
        ) from error
    except httpx2.ConnectError as error:
        if _is_certificate(error):
            raise RemoteError(
                f"The certificate of {host} cannot be trusted.",
                hint="SSL_CERT_FILE names the certificates to trust.",
            ) from error
        raise RetryableError(RemoteError(f"{host} cannot be reached.", hint=_NETWORK)) from error
    except httpx2.ProxyError as error:
        raise RemoteError(
            f"The proxy on the way to {host} refuses.", hint="HTTPS_PROXY and NO_PROXY set it."
        ) from error
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        raise RetryableError(
            RemoteError(f"The connection to {host} broke.", hint="Look into the server's log.")
        ) from error


def _is_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
