"""Removes several deployments, and says what could not be removed or looked at."""

from collections.abc import Sequence

from t2i_cli.errors import T2IError
from t2i_cli.terminal.console import Console
from t2i_cli.vertex import teardown
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.inventory import Deployment, Inventory


def remove_deployments(
    client: GoogleClient,
    found: Inventory,
    chosen: Sequence[Deployment],
    console: Console,
    *,
    artifacts: bool,
    bucket: str | None,
    all_: bool,
) -> None:
    """Remove the `chosen` ones of `found`; after all of them, raises the first T2IError.

    With `all_`, all that there are were meant: then that the endpoints could not be listed is an
    error, too.
    """
    failures: list[T2IError] = []
    unlisted = found.unlisted_text()
    for one in chosen:
        try:
            unlisted += teardown.remove_deployment(
                client, one, console.note, artifacts=artifacts, bucket=bucket
            )
        except T2IError as error:
            failures.append(error)
            if len(chosen) > 1:
                console.warn(error.message)
    if artifacts:
        teardown.empty_buckets(client, found, console.note)
        for sentence in found.unseen:
            console.warn(f"Weights may still be there: {sentence}")
    else:
        for weights in (text for one in chosen for text in one.weights_text()):
            console.note(f"Its weights stay: {weights}; with --bucket they go as well.")
    for sentence in dict.fromkeys(unlisted):
        console.warn(f"Something may be left: {sentence}")
    if failures:
        raise failures[0]
    if all_ and (reason := found.unlisted.get("endpoints")):
        raise type(reason)(
            f"The endpoints could not be listed, and some may still be paid for: {reason.message}",
            hint=reason.hint,
        ) from reason
