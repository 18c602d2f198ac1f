"""What the commands of `t2i remote` share: a connection, what t2i made there, which is meant."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from t2i_cli.errors import InputError, StorageError
from t2i_cli.settings.options import LocationOptions
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from t2i_cli.vertex.cloud_session import CloudSession
    from t2i_cli.vertex.inventory import Deployment, Inventory

EndpointArg = Annotated[
    str | None,
    typer.Argument(metavar="ENDPOINT", help="Its name, number or full name. [default: in use]"),
]


def _warn_overdue_elsewhere(session: "CloudSession") -> None:
    """Warn of recorded endpoints past their TTL in other projects and regions."""
    from t2i_cli.vertex import endpoint_store

    for one in endpoint_store.list_records():
        elsewhere = not one.name.startswith(f"{session.client.location.parent}/")
        if elsewhere and one.expires and one.expires < session.client.server_time():
            warn_overdue(one.name)


def _forget_removed(session: "CloudSession", found: "Inventory") -> None:
    """Forget recorded endpoints of this project and region that no longer exist."""
    from t2i_cli.vertex import endpoint_store

    if "endpoints" in found.unlisted:
        return
    existing = {name.split("/")[-1] for name in found.all_endpoints}
    for one in endpoint_store.list_records():
        here = one.name.startswith(f"{session.client.location.parent}/")
        if here and one.name.split("/")[-1] not in existing:
            with suppress(StorageError):
                endpoint_store.forget_endpoint(one.name)


def warn_overdue(name: str) -> None:
    parts = name.split("/")  # projects/PROJECT/locations/REGION/endpoints/NUMBER
    where = f" --project {parts[1]} --region {parts[3]}" if len(parts) == 6 else ""
    console.warn(
        f"{name} is past its TTL and may still be paid for; `t2i remote reap{where}` removes it."
    )


def find_deployment(found: "Inventory", endpoint: str | None) -> "Deployment":
    """The deployment that is named, or in use, or the only one. Raises InputError."""
    from t2i_cli.settings import store
    from t2i_cli.vertex import endpoint_store, inventory

    current = endpoint_store.current_endpoint()
    wanted = endpoint or store.get_setting("vertex_endpoint") or (current and current.name)
    if wanted:
        try:
            return inventory.find_deployment(found, wanted)
        except InputError as error:
            # It may be there all the same.
            raise found.unlisted.get("endpoints", error) from error
    if len(found.deployments) == 1:
        return next(iter(found.deployments.values()))
    raise InputError(
        "Which endpoint is meant?",
        hint=f"Of t2i's there is: {', '.join(found.deployments) or 'none'}.",
    )


@contextmanager
def connect_and_list(
    location: LocationOptions,
    bucket: str | None = None,
    *,
    endpoint: str | None = None,
    warn: bool = True,
    partial: bool = False,
) -> "Iterator[tuple[CloudSession, Inventory]]":
    """Connect, and list all that t2i made there; warns of deployments past their TTL.

    With `partial`, what cannot be listed is noted in the inventory.
    """
    from t2i_cli.vertex import cloud_session, inventory

    with cloud_session.connect(location, endpoint=endpoint) as session:
        known = [endpoint] if endpoint and endpoint.split("/")[-1].isdecimal() else []
        found = inventory.list_deployments(session.client, bucket, partial=partial, known=known)
        _warn_overdue_elsewhere(session)
        if warn:
            inventory.warn_overdue(found.overdue(session.client.server_time()), console.warn)
        yield session, found
        # Forget only now: a command for the endpoint in use must not fall back to another.
        _forget_removed(session, found)
