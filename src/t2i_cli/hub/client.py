"""Configures huggingface_hub in this process: HTTP timeouts, log handler, API client."""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx2
from huggingface_hub import HfApi, constants, get_token, set_client_factory
from huggingface_hub.utils._http import hf_request_event_hook

from t2i_cli import library_environment
from t2i_cli.errors import AccessError, InputError, StorageError, os_reason
from t2i_cli.files.state_files import check_regular
from t2i_cli.files.user_folders import NoHomeError
from t2i_cli.hub.answers import check_response
from t2i_cli.known_secrets import register_secret
from t2i_cli.net.http_client import shown_url, trace_request
from t2i_cli.terminal.console import console


class HubLogHandler(logging.Handler):
    """Counts huggingface_hub's warnings and prints none: they may contain signed URLs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count one warning, which means a failed request that is retried."""
        self.warnings += 1


hub_log = HubLogHandler()


class NullProgressBar:
    """The part of tqdm's interface that huggingface_hub uses, without output."""

    total: float | None = None
    n = 0
    format_dict: Mapping[str, float] = {}

    def __init__(self, *_: object, total: float | None = None, **__: object) -> None:
        self.total = total

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: float | None = 1) -> None:
        """`n` more bytes or files are done."""

    def _ignore(self, *_: object, **__: object) -> None:
        pass

    update_transfer = set_postfix_str = set_transfer_postfix_str = _ignore
    set_description = set_description_str = refresh = close = _ignore


def hub_api() -> HfApi:
    """A Hub API client with the token of the environment or the login store, if any.

    For calls of the Hub only. Raises InputError for an environment that prevents them, StorageError
    for a token that cannot be read, and AccessError for one that no header can carry: the
    library's error would print it.
    """
    require_valid_environment()
    check_token_file()
    try:
        token = get_token()
    except NotADirectoryError:  # the home may be /dev/null
        token = None
    except (OSError, UnicodeDecodeError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "it is not UTF-8"
        raise StorageError(
            f"Cannot read the Hub's token in {constants.HF_TOKEN_PATH}: {reason}.",
            hint="Remove the file, or name another in HF_TOKEN_PATH.",
        ) from error
    register_secret(token)
    if token and not is_token(token):
        raise AccessError(
            "The token for the Hub has characters that no token has.",
            hint="Check HF_TOKEN, or run `t2i login`.",
        )
    return HfApi(token=token)


def check_token_file() -> None:
    """Raise AccessError if the token's file is a pipe or device, which the library would wait for.

    A file that is missing or cannot be examined is left to the library, which goes on without.
    """
    try:
        check_regular(Path(constants.HF_TOKEN_PATH), follow_links=True)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise AccessError(
                f"Cannot read the Hub's token in {constants.HF_TOKEN_PATH}: {os_reason(error)}.",
                hint="Unset HF_TOKEN_PATH, or remove what is there, and run `t2i login`.",
            ) from error


def is_token(text: str) -> bool:
    """Whether the text could be a token: visible ASCII, no spaces."""
    return bool(text) and all("!" <= character <= "~" for character in text)


def _limit_timeouts(request: httpx2.Request) -> None:
    """Limit the timeouts of a request; huggingface_hub sets none for whoami and lists."""
    limit = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    timeouts = request.extensions.get("timeout") or dict.fromkeys(
        ("connect", "read", "write", "pool")
    )
    request.extensions["timeout"] = {
        name: limit if seconds is None else min(seconds, limit)
        for name, seconds in timeouts.items()
    }


def _trace_request(request: httpx2.Request) -> None:
    request.extensions["t2i_started"] = time.monotonic()
    console.trace(f"{request.method} {shown_url(str(request.url))}: sent")


def _trace_response(response: httpx2.Response) -> None:
    request = response.request
    started = request.extensions["t2i_started"]
    trace_request(request.method, str(request.url), str(response.status_code), started)


def require_valid_environment() -> None:
    """Raise InputError for an environment variable that prevents calls of the Hub."""
    library_environment.require_valid("http", "hub")


def require_cache_folder() -> None:
    """Raise InputError if the cache's folder is none, naming the variable that says where it is.

    Raises NoHomeError without a home: the library would make a folder named ~.
    """
    library_environment.require_valid("cache")
    folder = constants.HF_HUB_CACHE
    if folder.startswith("~"):
        raise NoHomeError(
            "You have no home directory for the Hub's cache.", hint="HF_HOME names another place."
        )
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise InputError(
            f"The Hub's cache {folder} is no folder.", hint="HF_HUB_CACHE names another place."
        )


SendAsHub = Callable[[], httpx2.Response]
"""Sends the request in hand as huggingface_hub does."""
RequestSender = Callable[[httpx2.Request, SendAsHub], httpx2.Response]
"""Sends a request of huggingface_hub in its place."""

_request_sender: ContextVar[RequestSender | None] = ContextVar("request_sender", default=None)


@contextmanager
def sent_by(sender: RequestSender) -> Iterator[None]:
    """Have `sender` send what huggingface_hub asks for in this block, of this thread only."""
    token = _request_sender.set(sender)
    try:
        yield
    finally:
        _request_sender.reset(token)


class HubHttpClient(httpx2.Client):
    """huggingface_hub's client, whose requests another may send in its place."""

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:  # noqa: ANN401
        """The response to the request, from the thread's sender if it has one."""
        send_as_hub = partial(super().send, request, **options)
        sender = _request_sender.get()
        return send_as_hub() if sender is None else sender(request, send_as_hub)


def _new_client() -> httpx2.Client:
    """huggingface_hub's client, built at its first call, with limits to the timeouts."""
    require_valid_environment()
    return HubHttpClient(
        event_hooks={
            "request": [hf_request_event_hook, _limit_timeouts, _trace_request],
            "response": [_trace_response, check_response],
        },
        follow_redirects=True,
        timeout=None,
    )


def _configure() -> None:
    set_client_factory(_new_client)
    logger = logging.getLogger("huggingface_hub")
    logger.handlers[:] = [hub_log]
    logger.propagate = False


_configure()
