"""Sends what huggingface_hub asks for one image: submissions once, questions and images again.

The library itself has no limits: a provider could name any address as that of the image, answer
without end, or be asked forever.
"""

import re
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from threading import Event as Flag

import httpx2
from huggingface_hub import constants

from t2i_cli.backends.hf.errors import (
    BILLED_HINT,
    CallContext,
    error_from_router,
    error_in_answer,
)
from t2i_cli.errors import RemoteError, TimedOutError
from t2i_cli.files.state_files import parse_json
from t2i_cli.hub.client import SendAsHub
from t2i_cli.hub.errors import hub_error
from t2i_cli.net import error_body
from t2i_cli.net.http_client import HttpClient, HttpResponse, host_and_port
from t2i_cli.net.retry import (
    CallCancelledError,
    RetryableError,
    RetryPolicy,
    call_with_retry,
    parse_retry_after,
)

MAX_REDIRECTS = 5
"""Redirects of one image."""

_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
"""Statuses after which a question or an image is asked for again."""
_DROPPED_HEADERS = {"content-encoding", "content-length", "transfer-encoding"}
"""Headers of a body as it was on the wire; it is decoded and whole here."""
_LOCAL_NAMES = ("localhost", "local", "internal", "intranet", "lan", "home.arpa")
_NUMBER = re.compile(r"0x[0-9a-f]*|\d+")


def router_url() -> httpx2.URL:
    """The address of Hugging Face's router, without a provider."""
    return httpx2.URL(constants.INFERENCE_PROXY_TEMPLATE.format(provider=""))


@dataclass(kw_only=True)
class ProviderCall:
    """One attempt at an image. `deadline` is by the monotonic clock, in seconds.

    `submitted` is whether the provider has taken the request.
    """

    client: HttpClient
    context: CallContext
    retry_policy: RetryPolicy
    deadline: float
    stop: Flag
    submitted: bool = field(default=False, init=False)

    def send(self, request: httpx2.Request, send_as_hub: SendAsHub) -> httpx2.Response:
        """The response to one request of the library; raises T2IError or RetryableError."""
        if self.stop.is_set():
            raise CallCancelledError
        if _origin(request.url) == _origin(httpx2.URL(constants.ENDPOINT)):
            return self._ask_hub(send_as_hub)
        if request.method == "POST":
            return self._submit(request)
        if _origin(request.url) == _origin(router_url()):
            return self._ask_router(request)
        return self._fetch_image(request)

    def _ask_hub(self, send_as_hub: SendAsHub) -> httpx2.Response:
        """What the Hub says of the model, which the library asks for before the first image."""
        try:
            response = send_as_hub()
        except httpx2.HTTPError as error:
            raise RetryableError(hub_error(error, self.context.served.repo)) from error
        if response.status_code in _TEMPORARY:
            raise RetryableError(
                RemoteError(f"The Hub answered with error {response.status_code}."),
                after=parse_retry_after(response.headers),
                overloaded=response.status_code == 429,  # noqa: PLR2004
            )
        return response

    def _submit(self, request: httpx2.Request) -> httpx2.Response:
        """Have an image made: sent once."""
        if _origin(request.url) != _origin(router_url()):
            raise RemoteError(
                f"The request would go to {host_and_port(str(request.url))}, with the token of "
                "the Hub.",
                hint="Check huggingface_hub's version.",
            )
        response = self._request(request, str(request.url), dict(request.headers))
        if not 200 <= response.status < 300:  # noqa: PLR2004
            raise error_from_router(response, self.context)
        self.submitted = True
        self._check_answer(response)
        return _as_library_response(response, request)

    def _ask_router(self, request: httpx2.Request) -> httpx2.Response:
        """What became of an image, or the image itself, from the router."""
        response = self._get_again(request, str(request.url), dict(request.headers))
        if not 200 <= response.status < 300:  # noqa: PLR2004
            body = error_body.parse_error_body(response, self.context.token)
            raise RemoteError(
                f"{self.context.served.provider} does not say what became of the image: status "
                f"{response.status}. {error_body.with_full_stop(body.message)}".rstrip(),
                hint=BILLED_HINT,
            )
        self._check_answer(response)
        return _as_library_response(response, request)

    def _fetch_image(self, request: httpx2.Request) -> httpx2.Response:
        """The image at the address that the provider gives, which gets no token."""
        url = request.url
        for _ in range(MAX_REDIRECTS + 1):
            if not is_public_address(url):
                raise RemoteError(
                    f"{self.context.served.provider} gives {host_and_port(str(url))} as the "
                    "address of the image, which is none on the internet with https://.",
                    hint=BILLED_HINT,
                )
            response = self._get_again(request, str(url), {})
            if not 300 <= response.status < 400:  # noqa: PLR2004
                break
            try:
                url = url.join(response.headers.get("location", ""))
            except (httpx2.InvalidURL, ValueError):
                break
        if response.status != 200:  # noqa: PLR2004
            raise RemoteError(
                f"The link to the image at {host_and_port(str(url))} fails with {response.status}.",
                hint=BILLED_HINT,
            )
        return _as_library_response(response, request)

    def _get_again(
        self, request: httpx2.Request, url: str, headers: dict[str, str]
    ) -> HttpResponse:
        """The response to a GET, which is repeated while it may help."""

        def get(_: float) -> HttpResponse:
            response = self._request(request, url, headers)
            if response.status in _TEMPORARY:
                raise RetryableError(
                    RemoteError(
                        f"{host_and_port(url)} answered with error {response.status}.",
                        hint=BILLED_HINT,
                    ),
                    after=response.retry_after,
                )
            return response

        policy = RetryPolicy(
            retries=self.retry_policy.retries,
            timeout=self._seconds_left(),
            from_options=self.retry_policy.from_options,
        )
        return call_with_retry(get, policy, None, self.stop)

    def _request(self, request: httpx2.Request, url: str, headers: dict[str, str]) -> HttpResponse:
        try:
            return self.client.request(
                request.method,
                url,
                headers={name: value for name, value in headers.items() if name != "host"},
                content=request.read() or None,
                timeout=self._seconds_left(),
            )
        except TimedOutError as error:
            if self.submitted:
                # Its last question had only the seconds that were left.
                raise self._late_error() from error
            raise

    def _seconds_left(self) -> float:
        """The seconds until the deadline. Raises TimedOutError after it."""
        if (left := self.deadline - time.monotonic()) <= 0:
            raise self._late_error()
        return left

    def _late_error(self) -> TimedOutError:
        return TimedOutError(
            f"{self.context.served.provider} did not finish the image within "
            f"{self.retry_policy.timeout:.3g} s.",
            hint=f"--timeout allows more. {BILLED_HINT}"
            if self.submitted
            else "--timeout allows more.",
        )

    def _check_answer(self, response: HttpResponse) -> None:
        """Raise the T2IError that an answer with a good status is."""
        try:
            answer = parse_json(response.body)
        except ValueError:  # an image, or what the library has to judge
            return
        if error := error_in_answer(answer, self.context):
            raise error


def is_public_address(url: httpx2.URL) -> bool:
    """Whether the URL is https:// and its host no address or name of a local network.

    What a name resolves to is not looked at.
    """
    host = url.host.rstrip(".").lower()
    if url.scheme != "https" or url.userinfo:
        return False
    try:
        address = ip_address(host)
    except ValueError:
        labels = host.split(".")
        # 127.1 and 2130706433 are addresses, too, in forms that only the system reads.
        is_number = bool(_NUMBER.fullmatch(labels[-1]))
        is_local = any(host.endswith(f".{name}") for name in _LOCAL_NAMES)
        return len(labels) > 1 and not is_number and not is_local
    return address.is_global and not address.is_multicast


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _as_library_response(response: HttpResponse, request: httpx2.Request) -> httpx2.Response:
    """The response as the library reads it."""
    headers = {n: v for n, v in response.headers.items() if n not in _DROPPED_HEADERS}
    return httpx2.Response(response.status, headers=headers, content=response.body, request=request)
