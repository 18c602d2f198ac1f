"""URLs of places that are no folders of this machine: `s3://bucket/path`, as fsspec has them."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from t2i_cli.errors import InputError
from t2i_cli.files.user_paths import expand_option

# Two letters at least: `C://` is a drive of Windows. With `::` before it, it is fsspec's chain.
_SCHEME = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+)://")
_LOCAL_PROTOCOLS = {"file", "local"}


@dataclass(frozen=True)
class BucketUrl:
    """The URL of a folder, without a slash at its end."""

    text: str

    @property
    def protocol(self) -> str:
        """The part before `://`, in lower case."""
        return self.text.partition("://")[0].lower()

    def __str__(self) -> str:
        return self.text

    def location(self, name: str = "") -> str:
        """The URL of the folder, or of an object in it."""
        return f"{self.text}/{name}" if name else self.text


def is_bucket_url(text: str) -> bool:
    """Whether the text is a URL, of a place that is no folder of this machine."""
    found = _SCHEME.match(text)
    return found is not None and found[1].lower() not in _LOCAL_PROTOCOLS


def check_no_url(noun: str, source: str, field: str) -> None:
    """Raise InputError for a part or an adapter that is named by a URL, which models alone are."""
    if is_bucket_url(source):
        raise InputError(
            f"The {noun} {source} is named by a URL, which -m alone takes.",
            hint="Name a file or folder of this machine, or owner/name on the Hub.",
            field=field,
        )


def without_file_scheme(text: str) -> str:
    """The path of a `file://` URL; any other text as it is."""
    found = _SCHEME.match(text)
    return text if found is None or is_bucket_url(text) else text[found.end() :]


def parse_place(text: str) -> Path | BucketUrl:
    """The folder that an option names: a path, or a URL. Raises InputError."""
    if is_bucket_url(text):
        return parse_bucket_url(text)
    return Path(expand_option(without_file_scheme(text)))


def parse_bucket_url(text: str) -> BucketUrl:
    """Check a URL. Raises InputError."""
    if bad := next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), None):
        raise InputError(f"The URL has the character U+{ord(bad):04X}, which none should have.")
    if "::" in text:
        raise InputError(f"'{text}' is a chain of URLs, which t2i does not take.")
    protocol, _, path = text.partition("://")
    try:
        has_secret = urlsplit(text).password is not None
    except ValueError as error:
        raise InputError(f"'{text}' is no URL: {error}.") from error
    if has_secret:
        raise InputError(
            f"A {protocol}:// URL may hold no password: other users see a command's arguments.",
            hint="fsspec's configuration takes it: https://filesystem-spec.readthedocs.io",
        )
    if not path.strip("/"):
        raise InputError(f"'{text}' names no bucket.", hint=f"As {protocol}://bucket/folder")
    return BucketUrl(f"{protocol.lower()}://{path.rstrip('/')}")
