"""Reads the API key of the server from a file that is the owner's alone."""

import os
import stat
import sys
from pathlib import Path

from t2i_cli.errors import InputError, os_reason
from t2i_cli.files.state_files import open_regular
from t2i_cli.known_secrets import register_secret

MIN_KEY_LENGTH = 16
"""Characters; a shorter key can be found by trying."""
_MAX_FILE = 2**16
"""Bytes; a request's headers have less room than that for a key."""
_INSECURE_HINT = "--insecure-key-file takes it all the same."


def check_key(key: str, source: str) -> str:
    """The key, if it can stand in a header. Raises InputError."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{source} holds no key: letters, digits and signs, without spaces.")
    register_secret(key)
    return key


def read_key_file(file: Path, *, insecure: bool = False) -> str:
    """The key in a file. Raises InputError.

    A file that others can read, or a short key, is an error too, unless `insecure`. Links are
    followed: secrets that are mounted into a container are links.
    """
    try:
        with os.fdopen(open_regular(file, os.O_RDONLY, follow_links=True), "rb") as opened:
            status = os.fstat(opened.fileno())
            data = opened.read(_MAX_FILE + 1)
        text = data.decode().strip()
    except OSError as error:
        raise InputError(f"Cannot read the key in '{file}': {os_reason(error)}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"Cannot read the key in '{file}': it is no text.") from error
    if len(data) > _MAX_FILE:
        raise InputError(f"Cannot read the key in '{file}': it is too large.")
    key = check_key(text, str(file))
    if insecure:
        return key
    if sys.platform != "win32" and (
        status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or status.st_uid not in {0, os.getuid()}
    ):
        raise InputError(
            f"Others can read or change the key in '{file}'.",
            hint=f"chmod 600 '{file}'; {_INSECURE_HINT}",
        )
    if len(key) < MIN_KEY_LENGTH:
        raise InputError(
            f"The key in '{file}' has fewer than {MIN_KEY_LENGTH} characters.",
            hint=f"openssl rand -hex 32 makes one; {_INSECURE_HINT}",
        )
    return key
