"""Tokens of Google in tests: how old they count as."""

import math

import pytest

from t2i_cli.net.google_credentials import TokenProvider


def count_an_old_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token that is refused counts as one that was issued long ago."""
    discard, aged = TokenProvider.discard, list[TokenProvider]()

    def discard_old(provider: TokenProvider) -> bool:
        if not aged:
            aged.append(provider)
            provider._renewed = -math.inf
        return discard(provider)

    monkeypatch.setattr(TokenProvider, "discard", discard_old)
