"""The error of a server that cannot be reached, and how a plan without one says what it lacks."""

from t2i_cli.errors import AccessError, RemoteError, TimedOutError


class UnreachableError(RemoteError):
    """No connection to the server could be made, or it broke."""


ACCOUNT_OR_NETWORK_ERRORS = (AccessError, UnreachableError, TimedOutError)
"""What may be missing where only a plan is wanted: an account, or the network."""


def unknown_facts(what: str, why: str | None) -> dict[str, object]:
    """What a plan's estimate says of facts that are not known; nothing without a reason `why`."""
    return {} if why is None else {"not_known": f"{what}: {why}"}
