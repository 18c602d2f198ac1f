"""Who is logged in to the Hub; huggingface_hub's own store keeps the tokens."""

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

_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_WHERE = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True, kw_only=True)
class Account:
    """A user of the Hub, the name of their token, and where it was found."""

    user: str
    token_name: str | None
    role: str | None
    source: str


def store_token(token: str) -> Account:
    """Check the token with the Hub, then hand it to huggingface_hub's store; raises T2IError."""
    if not client.is_token(token):
        # The text stays out of the message: it may be a token with a slip.
        raise InputError(
            "That is not a token: it is empty or has spaces or other characters that no token has.",
            hint=f"Make one at {_WHERE}.",
        )
    if token.startswith("api_org"):
        raise InputError("That is an organisation's token.", hint="Use a token of your own.")
    account = _account(_whoami(token, "this token"), str(constants.HF_TOKEN_PATH))
    with translate_hub_errors():
        huggingface_hub.login(token, add_to_git_credential=False, skip_if_logged_in=False)
    return account


def token_owner() -> Account | None:
    """Who the token in use belongs to, as the Hub says; None without a token. Raises T2IError."""
    token = client.hub_api().token
    if not isinstance(token, str):
        return None
    found = token_source() or "huggingface_hub"
    return _account(_whoami(token, f"the token from {found}"), found)


def check_reachable() -> None:
    """Raise RemoteError or TimedOutError unless the Hub answers."""
    with translate_hub_errors():
        hf_raise_for_status(get_session().get(f"{constants.ENDPOINT}/api/models?limit=1"))


def token_source() -> str | None:
    """Where a token is found: a variable's name, which wins, or the store's file."""
    for variable in _VARIABLES:
        if os.environ.get(variable):
            return variable
    stored = Path(constants.HF_TOKEN_PATH)
    return str(stored) if stored.exists() else None


def remove_token() -> str | None:
    """Take the token in use out of huggingface_hub's store, and no other; returns its name.

    None if the store has none. A token in the environment stays: `source()` tells.
    """
    stored = Path(constants.HF_TOKEN_PATH)
    with translate_hub_errors():
        try:
            active = stored.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        names = [name for name, token in get_stored_tokens().items() if token == active]
        if names:
            # It raises OSError where the environment still has a token, and where there is no
            # git to forget its copy; the store is done by then.
            with suppress(OSError):
                huggingface_hub.logout(names[0])
        stored.unlink(missing_ok=True)
    return names[0] if names else "its only token"


def _whoami(token: str, which: str) -> dict[str, Any]:
    try:
        with translate_hub_errors():
            return HfApi().whoami(token)
    except AccessError as error:
        raise AccessError(f"The Hub refuses {which}.", hint=f"Make one at {_WHERE}.") from error


def _account(answer: dict[str, Any], found: str) -> Account:
    details = (answer.get("auth") or {}).get("accessToken") or {}
    return Account(
        user=answer["name"],
        token_name=details.get("displayName"),
        role=details.get("role"),
        source=found,
    )
