"""Hub login: checks, stores and removes tokens in huggingface_hub's token store."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import HfApi, constants, get_session, hf_raise_for_status
from huggingface_hub.utils._auth import get_stored_tokens

from t2i_cli.errors import AccessError, InputError
from t2i_cli.hub import client
from t2i_cli.hub.errors import translate_hub_errors
from t2i_cli.known_secrets import register_secret

_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_TOKENS_PAGE = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True, kw_only=True)
class Account:
    """A Hub user with the name and role of the token, and its source: a variable or a file."""

    user: str
    token_name: str | None
    role: str | None
    source: str


def store_token(token: str) -> Account:
    """Verify the token with the Hub, then save it in huggingface_hub's store. Raises T2IError."""
    register_secret(token)
    if not client.is_token(token):
        # Do not print the text: it may be a mistyped token.
        raise InputError(
            "That is not a token: it is empty or has spaces or other characters that no token has.",
            hint=f"Make one at {_TOKENS_PAGE}.",
        )
    if token.startswith("api_org"):
        raise InputError("That is an organisation's token.", hint="Use a token of your own.")
    client.require_cache_folder()
    account = _account(_whoami(token, "this token"), str(constants.HF_TOKEN_PATH))
    with translate_hub_errors():
        huggingface_hub.login(token, add_to_git_credential=False, skip_if_logged_in=False)
    return account


def token_owner() -> Account | None:
    """The account of the token in use, from the Hub; None without a token. Raises T2IError."""
    token = client.hub_api().token
    if not isinstance(token, str):
        return None
    source = token_source() or "huggingface_hub"
    return _account(_whoami(token, f"the token from {source}"), source)


def check_reachable() -> None:
    """Raise RemoteError or TimedOutError unless the Hub answers."""
    client.require_valid_environment()
    with translate_hub_errors():
        hf_raise_for_status(get_session().get(f"{constants.ENDPOINT}/api/models?limit=1"))


def token_source() -> str | None:
    """Source of the token: an environment variable's name, else the token file's path, or None."""
    for variable in _TOKEN_VARIABLES:
        if os.environ.get(variable):
            return variable
    stored = Path(constants.HF_TOKEN_PATH)
    return str(stored) if stored.exists() else None


def remove_token() -> str | None:
    """Remove only the active token from huggingface_hub's store and return its name, None without.

    A token in the environment stays; `token_source()` then still returns it. Raises T2IError.
    """
    stored = Path(constants.HF_TOKEN_PATH)
    client.check_token_file()
    with translate_hub_errors():
        try:
            active = stored.read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        names = [name for name, token in get_stored_tokens().items() if token == active]
        if names:
            # logout() raises OSError where the environment still has a token, and where git is
            # missing, but only after it has updated the store.
            with suppress(OSError):
                huggingface_hub.logout(names[0])
        stored.unlink(missing_ok=True)
    return names[0] if names else "its only token"


def _whoami(token: str, description: str) -> dict[str, Any]:
    """The Hub's whoami response. Raises AccessError for an invalid token, or T2IError."""
    client.require_valid_environment()
    try:
        with translate_hub_errors():
            return HfApi().whoami(token)
    except AccessError as error:
        raise AccessError(
            f"The Hub refuses {description}.", hint=f"Make one at {_TOKENS_PAGE}."
        ) from error


def _account(response: dict[str, Any], source: str) -> Account:
    details = (response.get("auth") or {}).get("accessToken") or {}
    return Account(
        user=response["name"],
        token_name=details.get("displayName"),
        role=details.get("role"),
        source=source,
    )
