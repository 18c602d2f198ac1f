"""`t2i remote`: deploys, lists, uses and removes Vertex AI endpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from t2i_cli.cli import options
from t2i_cli.cli.commands import remote_build, remote_deploy, remote_generate
from t2i_cli.cli.option_groups import command, examples
from t2i_cli.cli.options import JsonOpt, QuietOpt
from t2i_cli.errors import InputError, RemoteError, StorageError, T2IError
from t2i_cli.settings.options import LocationOptions
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from t2i_cli.vertex.inventory import Deployment, Inventory
    from t2i_cli.vertex.lifecycle import CloudSession

app = typer.Typer(
    help="A Vertex AI endpoint: deploy it, use it, see what it costs, take it down.",
    no_args_is_help=True,
    epilog=examples("t2i remote deploy -m sd15 --ttl 2h --max-cost 5", "t2i remote down --bucket"),
    rich_markup_mode=None,
)
command(
    app,
    "t2i remote deploy -m sd15 --ttl 2h --max-cost 5",
    "t2i remote deploy -m sdxl --dry-run",
)(remote_deploy.deploy)
command(
    app,
    't2i remote generate "a lighthouse at dawn" -o dawn.png',
    't2i remote generate "a red kite" -n 4 -o kites/',
)(remote_generate.generate)
command(
    app,
    "t2i remote run -m sd15 --ttl 1h -- t2i batch prompts.txt --backend vertex",
    "t2i remote run --yes -- ./make-covers.sh",
    context_settings={"allow_interspersed_args": False},
)(remote_deploy.run)
command(
    app,
    "t2i remote build --dry-run",
    "t2i remote build --with cloud-build --bake sd15",
)(remote_build.build)
command(
    app,
    "t2i remote package -m sd15",
    "t2i remote package -m ./my-model -o packaged",
)(remote_build.package)

_CHECKS_GOOGLE = {"deploy", "run", "list", "ls", "status", "down", "reap", "cost"}
EndpointArg = Annotated[
    str | None,
    typer.Argument(metavar="ENDPOINT", help="Its name, number or full name. [default: in use]"),
]
BucketFlag = Annotated[bool, typer.Option("--bucket", help="Remove its weights there as well.")]


@app.callback()
def remote(context: typer.Context) -> None:
    """Warn of every remembered endpoint past its TTL; some commands ask Google instead."""
    from t2i_cli.vertex import endpoint_store

    if context.invoked_subcommand in _CHECKS_GOOGLE:
        return
    for one in endpoint_store.list_records():
        if one.expires and one.expires < time.time():
            _warn_overdue(one.name)


@command(
    app, "t2i remote list", "t2i remote list --region europe-west4 --json", name="list", alias="ls"
)
def list_(
    location: LocationOptions,
    json: JsonOpt = False,
) -> None:
    """List every endpoint that t2i made here, what it did and what it cost so far."""
    console.configure(json=json)
    from t2i_cli.vertex import machine_types, status

    with _connect_and_list(location) as (session, found):
        prices = machine_types.load_prices()
        lines = [
            status.endpoint_status(one, session.client, prices)
            for one in found.deployments.values()
        ]
    if json:
        for line in lines:
            console.result_json(line.to_json())
        return
    if not lines:
        console.note("There is nothing of t2i's here.")
        return
    console.table(status.status_table(lines))
    console.note(f"Prices are estimates (table: {prices.date}).")


@command(app, "t2i remote status", "t2i remote status t2i-sd15 --json")
def status(
    location: LocationOptions,
    endpoint: EndpointArg = None,
    json: JsonOpt = False,
) -> None:
    """Tell all about one endpoint; exit 0 if a model is deployed on it."""
    console.configure(json=json)
    from t2i_cli.vertex import machine_types, operations, provisioning, status

    with _connect_and_list(location, endpoint=endpoint) as (session, found):
        one = _find_deployment(found, endpoint)
        line = status.endpoint_status(one, session.client, machine_types.load_prices())
        notes = [note for each in one.deployed() for note in provisioning.status_notes(each)]
        details = {"parts": one.parts_text(), "under_way": False, "log": None, "notes": notes}
        if line.endpoint:
            under_way = operations.pending_operation(session.client, line.endpoint)
            details |= {
                "under_way": under_way is not None,
                "log": operations.log_link(session.client, line.endpoint),
            }
    if json:
        console.result_json(line.to_json() | details)
    else:
        for fact in status.status_facts(line, details):
            console.result(fact)
    if line.state != "deployed":
        raise typer.Exit(RemoteError.exit_code)


@command(app, "t2i remote use 1234567890", "t2i remote use t2i-sd15 --region us-central1")
def use(
    endpoint: Annotated[str, typer.Argument(help="Its name, number or full name.")],
    location: LocationOptions,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Have `--backend vertex` use this endpoint from now on; it need not be of t2i's making."""
    console.configure(json=json, quiet=quiet)
    from t2i_cli.vertex import endpoint_selection, lifecycle

    with lifecycle.connect(location, endpoint=endpoint) as session:
        found = endpoint_selection.use_endpoint(endpoint, session.client)
    if json:
        console.result_json({"endpoint": found.name, "dns": found.dns, "model": found.model})
    else:
        console.result(found.name)


@command(app, "t2i remote down", "t2i remote down t2i-sd15 --bucket", "t2i remote down --all --yes")
def down(
    location: LocationOptions,
    endpoint: EndpointArg = None,
    all_: Annotated[bool, typer.Option("--all", help="Every endpoint that t2i made here.")] = False,
    bucket: BucketFlag = False,
    yes: options.YesOpt = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Undeploy and delete an endpoint and its model, and look whether they are gone."""
    console.configure(json=json, quiet=quiet)
    if all_ and endpoint:
        raise InputError("Give an endpoint or --all, not both.")
    with _connect_and_list(location, endpoint=endpoint) as (session, found):
        chosen = list(found.deployments.values()) if all_ else [_find_deployment(found, endpoint)]
        if all_ and chosen and not yes:
            console.confirm(f"Remove {', '.join(f'{c.name} (by {c.labels.by})' for c in chosen)}?")
        _remove(session, found, chosen, artifacts=bucket)


@command(app, "t2i remote reap", "t2i remote reap --bucket my-bucket --quiet")
def reap(
    location: LocationOptions,
    bucket: Annotated[
        str | None, typer.Option("--bucket", help="Look into this bucket as well.")
    ] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Remove whatever is past its TTL, weights in the bucket included; made for cron."""
    console.configure(json=json, quiet=quiet)
    from t2i_cli.vertex.location import split_regions

    failures: list[T2IError] = []
    for place in (places := split_regions(location)):
        try:
            with _connect_and_list(place, bucket, warn=False) as (session, found):
                overdue = found.overdue(session.client.server_time())
                _remove(session, found, overdue, artifacts=True, bucket=bucket)
        except T2IError as error:
            # What is past its TTL in another region must not wait for this one.
            failures.append(error)
            if len(places) > 1:
                console.warn(f"{place.region}: {error.message}")
    if failures:
        raise failures[0]


@command(app, "t2i remote cost", "t2i remote cost --json")
def cost(
    location: LocationOptions,
    json: JsonOpt = False,
) -> None:
    """Estimate what t2i's endpoints cost: an hour, a day, so far."""
    console.configure(json=json)
    from t2i_cli.vertex import machine_types, status

    with _connect_and_list(location) as (session, found):
        prices = machine_types.load_prices()
        bill = status.cost_report(found, session.client, prices)
    if json:
        console.result_json(bill.to_json())
        return
    for text in bill.text():
        console.result(text)


def _remove(
    session: "CloudSession",
    found: "Inventory",
    chosen: "list[Deployment]",
    *,
    artifacts: bool,
    bucket: str | None = None,
) -> None:
    """Remove deployments; after all of them, raises the first T2IError."""
    from t2i_cli.vertex import teardown

    failures: list[T2IError] = []
    for one in chosen:
        try:
            teardown.remove_deployment(
                session.client, one, console.note, artifacts=artifacts, bucket=bucket
            )
        except T2IError as error:
            failures.append(error)
            if len(chosen) > 1:
                console.warn(error.message)
    if artifacts:
        teardown.empty_buckets(session.client, found, console.note)
        for sentence in found.unseen:
            console.warn(f"Weights may still be there: {sentence}")
    else:
        for weights in (text for one in chosen for text in one.weights_text()):
            console.note(f"Its weights stay: {weights}; with --bucket they go as well.")
    if failures:
        raise failures[0]
    names = [one.name for one in chosen]
    if console.json:
        console.result_json({"removed": names})
    else:
        console.note(f"Removed: {', '.join(names)}." if names else "There was nothing to remove.")


def _warn_overdue_elsewhere(session: "CloudSession") -> None:
    """Warn of recorded endpoints past their TTL in other projects and regions."""
    from t2i_cli.vertex import endpoint_store

    for one in endpoint_store.list_records():
        elsewhere = not one.name.startswith(f"{session.client.location.parent}/")
        if elsewhere and one.expires and one.expires < session.client.server_time():
            _warn_overdue(one.name)


def _forget_removed(session: "CloudSession", found: "Inventory") -> None:
    """Forget recorded endpoints of this project and region that no longer exist."""
    from t2i_cli.vertex import endpoint_store

    existing = {name.split("/")[-1] for name in found.all_endpoints}
    for one in endpoint_store.list_records():
        here = one.name.startswith(f"{session.client.location.parent}/")
        if here and one.name.split("/")[-1] not in existing:
            with suppress(StorageError):
                endpoint_store.forget_endpoint(one.name)


def _warn_overdue(name: str) -> None:
    parts = name.split("/")  # projects/PROJECT/locations/REGION/endpoints/NUMBER
    where = f" --project {parts[1]} --region {parts[3]}" if len(parts) == 6 else ""
    console.warn(
        f"{name} is past its TTL and may still be paid for; `t2i remote reap{where}` removes it."
    )


def _find_deployment(found: "Inventory", endpoint: str | None) -> "Deployment":
    """The deployment that is named, or in use, or the only one. Raises InputError."""
    from t2i_cli.settings import store
    from t2i_cli.vertex import endpoint_store, inventory

    current = endpoint_store.current_endpoint()
    wanted = endpoint or store.get_setting("vertex_endpoint") or (current and current.name)
    if wanted:
        return inventory.find_deployment(found, wanted)
    if len(found.deployments) == 1:
        return next(iter(found.deployments.values()))
    raise InputError(
        "Which endpoint is meant?",
        hint=f"Of t2i's there is: {', '.join(found.deployments) or 'none'}.",
    )


@contextmanager
def _connect_and_list(
    location: LocationOptions,
    bucket: str | None = None,
    *,
    endpoint: str | None = None,
    warn: bool = True,
) -> "Iterator[tuple[CloudSession, Inventory]]":
    """Connect, and list all that t2i made there; warns of deployments past their TTL."""
    from t2i_cli.vertex import inventory, lifecycle

    with lifecycle.connect(location, endpoint=endpoint) as session:
        found = inventory.list_deployments(session.client, bucket)
        _warn_overdue_elsewhere(session)
        if warn:
            inventory.warn_overdue(found.overdue(session.client.server_time()), console.warn)
        yield session, found
        # Forget only now: a command for the endpoint in use must not fall back to another.
        _forget_removed(session, found)
