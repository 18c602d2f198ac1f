"""Asks before gigabytes are downloaded: once a run, and on a terminal only."""

import os
from collections.abc import Iterable, Mapping

from t2i_cli.errors import InputError
from t2i_cli.terminal.console import Console, format_bytes

YES_VARIABLE = "T2I_YES"
"""Environment variable that agrees to downloads; to nothing that costs money or removes."""
MIN_ASKED_BYTES = 10**9
"""Smaller downloads are begun without a question."""
_MIB = 2**20
_AGREES = {"1": True, "true": True, "yes": True, "": False, "0": False, "false": False, "no": False}


def asks_for_downloads(console: Console, *, yes: bool) -> bool:
    """Whether a download of gigabytes is asked for: on a terminal, unless agreed to before.

    Raises InputError if T2I_YES has another value than 1 or 0.
    """
    value = os.environ.get(YES_VARIABLE, "")
    agreed = _AGREES.get(value.strip().lower())
    if agreed is None:
        raise InputError(f"{YES_VARIABLE} must be 1 or 0, not {value!r}.")
    return console.asks and not (yes or agreed)


def confirm_download(plans: Iterable[Mapping[str, object]], console: Console, *, yes: bool) -> None:
    """Ask before the models of `plans` are downloaded, if that takes gigabytes.

    A plan is a backend's estimate, with the model's name. Raises InputError on no.
    """
    if not asks_for_downloads(console, yes=yes):
        return
    missing = {
        str(plan["model"]): int(str(plan["download_mib"])) * _MIB
        for plan in plans
        if plan.get("download_mib")
    }
    if sum(missing.values()) < MIN_ASKED_BYTES:
        return
    names = " and ".join(missing)
    question = f"{names} must be downloaded first: {format_bytes(sum(missing.values()))}. Go on?"
    if not console.ask(question):
        raise InputError(
            "Declined; nothing was downloaded.",
            hint="`-m postcard` needs no download; --yes downloads without a question.",
        )
