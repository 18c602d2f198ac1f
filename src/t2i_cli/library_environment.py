"""The environment variables that libraries read when they are imported or build an HTTP client.

A library raises whatever it likes for a value that it cannot take, often for work that never uses
it. So the values are checked here, where the work begins that needs them, and those that would
break an import are taken out of this process before it.
"""

import linecache
import os
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from t2i_cli.errors import InputError, error_reason

Purpose = Literal["http", "hub", "cache", "google"]
"""Work that reads a variable: any HTTP client, calls of the Hub, its cache on disk, Google."""

PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
"""The kinds of proxies that httpx2 speaks, SOCKS by socksio."""

_UNUSED = (
    "TQDM_",
    "TRANSFORMERS_VERBOSITY",
    "DIFFUSERS_VERBOSITY",
    "HF_HUB_VERBOSITY",
    "WEB_CONCURRENCY",
)
"""Beginnings of names that mean nothing to t2i: tqdm's bars, logs that it sets, uvicorn's workers.

The libraries raise or complain all the same, at import or set-up.
"""
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_PROJECT = re.compile(
    r"([a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"
    r"|[1-9][0-9]{0,18}"
)
_PACKAGE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class LibraryVariable:
    """One variable: valid values in words, their check, and the work that reads it.

    `unless` is a variable beside which this one is not read. `at_import`: a library raises for an
    invalid value when it is imported, for any work.
    """

    name: str
    takes: str
    accepts: Callable[[str], object]
    purposes: frozenset[Purpose]
    unless: str | None = None
    at_import: bool = False

    @property
    def value(self) -> str:
        """The value that the libraries read or, without `set_aside`, would have read; or ""."""
        if self.name in _PROXIES:
            # As urllib does: the name in small letters wins, even where it is empty.
            lower = os.environ.get(self.name.lower())
            return os.environ.get(self.name, "") if lower is None else lower
        return os.environ.get(self.name) or _set_aside.get(self.name, "")

    def fault(self) -> InputError | None:
        """What is wrong with the value, or None."""
        value = self.value
        if self.unless and os.environ.get(self.unless):
            return None
        if not value or self.accepts(value):
            return None
        # A proxy's address may hold a password.
        shown = repr(f"…@{value.rpartition('@')[2]}" if "@" in value else value)
        return InputError(
            f"{self.name} must be {self.takes}, not {shown}.",
            hint=_hint(self.name),
        )


def is_server_url(value: str, schemes: tuple[str, ...] = ("http", "https")) -> bool:
    """Whether the value is a URL with one of the schemes, a host, and a valid port if any."""
    try:
        url = urlsplit(value)
        host, _ = url.hostname, url.port
    except ValueError:
        return False
    printable = value.isascii() and value.isprintable() and " " not in value
    return printable and url.scheme in schemes and bool(host)


def is_project_id(value: str) -> bool:
    """Whether the value can be a Google Cloud project's id or number.

    6 to 30 lower-case letters, digits and hyphens, after a domain where the organisation has such
    projects (https://cloud.google.com/resource-manager/docs/creating-managing-projects).
    """
    return _PROJECT.fullmatch(value) is not None


def _is_proxy(value: str) -> bool:
    excluded = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    if "*" in map(str.strip, excluded.split(",")):  # no proxy at all
        return True
    return is_server_url(value if "://" in value else f"http://{value}", PROXY_SCHEMES)


def _is_whole_number(value: str) -> bool:
    return re.fullmatch(r"\s*\d{1,9}\s*", value, re.ASCII) is not None


def _holds_certificates(value: str) -> bool:
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=value)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        return False
    return True


def _is_certificate_folder(value: str) -> bool:
    return any(os.path.isdir(part) for part in value.split(os.pathsep))


def _is_key_log(value: str) -> bool:
    # Only the context that Python makes with these certificates writes it.
    if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        return True
    return not os.path.isdir(value) and os.access(os.path.dirname(value) or ".", os.W_OK)


def _can_be_folder(value: str) -> bool:
    """Whether the path is a folder, or one could be made there as far as its parents tell."""
    path = os.path.abspath(os.path.expanduser(os.path.expandvars(value)))
    while not os.path.lexists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return os.path.isdir(path)


def _is_writable_folder(value: str) -> bool:
    return os.path.isdir(value) and os.access(value, os.W_OK)


def _is_no_folder(value: str) -> bool:
    return not os.path.isdir(os.path.expanduser(value))


_PROXY = "a proxy's address with http://, https://, socks5:// or socks5h://"
_SECONDS = "a whole number of seconds, as 10"
_FOLDER = "a folder"
_HTTP: frozenset[Purpose] = frozenset({"http"})
_HUB: frozenset[Purpose] = frozenset({"hub"})
_CACHE: frozenset[Purpose] = frozenset({"cache", "hub"})
_GOOGLE: frozenset[Purpose] = frozenset({"google"})


def _variable(
    name: str,
    takes: str,
    accepts: Callable[[str], object],
    purposes: frozenset[Purpose],
    *,
    unless: str | None = None,
    at_import: bool = False,
) -> LibraryVariable:
    return LibraryVariable(
        name=name,
        takes=takes,
        accepts=accepts,
        purposes=purposes,
        unless=unless,
        at_import=at_import,
    )


VARIABLES = (
    *(_variable(name, _PROXY, _is_proxy, _HTTP) for name in _PROXIES),
    _variable("SSL_CERT_FILE", "a file of certificates in PEM", _holds_certificates, _HTTP),
    _variable(
        "SSL_CERT_DIR",
        "a folder of certificates",
        _is_certificate_folder,
        _HTTP,
        unless="SSL_CERT_FILE",
    ),
    _variable("SSLKEYLOGFILE", "a file in a folder that can be written to", _is_key_log, _HTTP),
    _variable("HF_ENDPOINT", "a URL with http:// or https://", is_server_url, _HUB),
    _variable("HF_HUB_DOWNLOAD_TIMEOUT", _SECONDS, _is_whole_number, _HUB, at_import=True),
    _variable("HF_HUB_ETAG_TIMEOUT", _SECONDS, _is_whole_number, _HUB, at_import=True),
    _variable(
        "HF_HUB_USER_AGENT_ORIGIN",
        "printable ASCII",
        lambda value: value.isascii() and value.isprintable(),
        _HUB,
    ),
    _variable("HF_HOME", _FOLDER, _can_be_folder, _CACHE),
    _variable("HF_HUB_CACHE", _FOLDER, _can_be_folder, _CACHE),
    _variable("HUGGINGFACE_HUB_CACHE", _FOLDER, _can_be_folder, _CACHE, unless="HF_HUB_CACHE"),
    _variable("XDG_CACHE_HOME", _FOLDER, _can_be_folder, _CACHE, unless="HF_HOME"),
    _variable("HOME", "an absolute path", os.path.isabs, _CACHE, unless="HF_HOME", at_import=True),
    _variable("HF_TOKEN_PATH", "a file", _is_no_folder, _HUB),
    _variable("GCE_METADATA_TIMEOUT", _SECONDS, _is_whole_number, _GOOGLE),
    _variable("GCE_METADATA_DETECT_RETRIES", "a whole number", _is_whole_number, _GOOGLE),
    _variable(
        "GCE_METADATA_MTLS_MODE",
        "none, default or strict",
        lambda value: value.lower() in {"none", "default", "strict"},
        _GOOGLE,
    ),
    _variable("GOOGLE_CLOUD_QUOTA_PROJECT", "a project's id or number", is_project_id, _GOOGLE),
    # The OpenMP library ignores it, and says so on stderr in a form of its own.
    _variable(
        "OMP_NUM_THREADS",
        "a number of threads",
        re.compile(r"\s*[1-9]\d{0,5}(\s*,\s*[1-9]\d{0,5})*\s*").fullmatch,
        frozenset(),
        at_import=True,
    ),
    # diffusers' own wait for an answer on the terminal, which t2i never asks for.
    _variable(
        "DIFFUSERS_TIMEOUT_REMOTE_CODE", _SECONDS, _is_whole_number, frozenset(), at_import=True
    ),
    # For servers of several processes; t2i's is one.
    *(
        _variable(
            name,
            "a folder that can be written to",
            _is_writable_folder,
            frozenset(),
            at_import=True,
        )
        for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
    ),
)

_set_aside: dict[str, str] = {}
"""The variables that were taken out of this process's environment, with their values."""


def require_valid(*purposes: Purpose) -> None:
    """Raise InputError for the first variable that work of these kinds reads and cannot use."""
    for variable in VARIABLES:
        if variable.purposes.intersection(purposes) and (fault := variable.fault()):
            raise fault


def environment_faults() -> list[InputError]:
    """All faults of the variables, one for each variable."""
    return [fault for variable in VARIABLES if (fault := variable.fault())]


def set_aside_invalid() -> None:
    """Take out of the environment what would break the import of a library for any work.

    `require_valid` still finds it. An empty variable goes, too: it counts as not set, but several
    libraries make a number or a path of it. Call this before torch, huggingface_hub, diffusers,
    google-auth or prometheus_client is imported.
    """
    names = [variable.name for variable in VARIABLES if variable.at_import and variable.fault()]
    names += [name for name in os.environ if name.startswith(_UNUSED)]
    # An empty proxy stays: it says that there is none.
    names += [v.name for v in VARIABLES if v.name not in _PROXIES and not os.environ.get(v.name)]
    for name in names:
        if name in os.environ:
            _set_aside[name] = os.environ.pop(name)


def environment_of_children() -> dict[str, str]:
    """The environment for a child process that checks it itself: with what was set aside."""
    return {**os.environ, **_set_aside}


def import_fault(raised: Exception) -> InputError | None:
    """The error that names the variable for which a library could not be imported, or None.

    For variables that no table lists, of developers mostly: the module that raised names one that
    is set, either in the statement that failed, or its value stands in the message.
    """
    for error in _causes(raised):
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if _PACKAGE not in Path(frame.filename).parents
        ]
        if not any(frame.name == "<module>" for frame in frames):
            continue
        for frame in reversed(frames):
            first = frame.lineno or 1
            failed = linecache.getlines(frame.filename)[first - 1 : frame.end_lineno or first]
            for name in _set_names("".join(linecache.getlines(frame.filename))):
                if name in "".join(failed) or os.environ[name] in str(error):
                    return InputError(
                        f"{name} is {os.environ[name]!r}, which {_library_of(frame.filename)} "
                        f"cannot use: {error_reason(error).rstrip('.')}.",
                        hint=_hint(name),
                    )
    return None


def _library_of(filename: str) -> str:
    inside = Path(filename).as_posix().rpartition("/site-packages/")[2]
    return inside.partition("/")[0]


def _hint(name: str) -> str:
    return f"Correct or unset the environment variable {name}."


def _set_names(source: str) -> Iterator[str]:
    """The environment variables that are set and that the source text of a module names.

    t2i's own are no library's.
    """
    for name in dict.fromkeys(re.findall(r"\b[A-Z][A-Z0-9_]{3,}\b", source)):
        if os.environ.get(name) and not name.startswith("T2I_"):
            yield name


def _causes(raised: Exception) -> Iterator[Exception]:
    error: BaseException | None = raised
    while isinstance(error, Exception):
        yield error
        error = error.__cause__ or error.__context__
