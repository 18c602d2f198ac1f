"""`t2i remote`: deploys, lists, uses and removes Vertex AI endpoints."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2i_cli.cli import options
from t2i_cli.cli.commands import (
    remote_build,
    remote_deploy,
    remote_generate,
    remote_list,
    remote_pause,
    remote_session,
)
from t2i_cli.cli.commands.remote_session import EndpointArg
from t2i_cli.cli.option_groups import command, examples
from t2i_cli.cli.options import JsonOpt, QuietOpt
from t2i_cli.errors import InputError, RemoteError, T2IError
from t2i_cli.settings.options import LocationOptions
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from t2i_cli.vertex.cloud_session import CloudSession
    from t2i_cli.vertex.inventory import Deployment, Inventory

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

command(
    app,
    "t2i remote list",
    "t2i remote list --all-regions --json",
    name="list",
    alias="ls",
)(remote_list.list_endpoints)
command(app, "t2i remote cost", "t2i remote cost --all-regions")(remote_list.cost)

command(app, "t2i remote pause", "t2i remote pause sd15 --ttl 3d")(remote_pause.pause)
command(
    app,
    "t2i remote resume --ttl 2h --max-cost 5",
    "t2i remote resume sd15 --dry-run",
)(remote_pause.resume)

_CHECKS_GOOGLE = {
    "pause",
    "resume",
    "deploy",
    "run",
    "list",
    "ls",
    "status",
    "down",
    "reap",
    "cost",
}
BucketFlag = Annotated[bool, typer.Option("--bucket", help="Remove its weights there as well.")]


@app.callback()
def remote(context: typer.Context) -> None:
    """Warn of every remembered endpoint past its TTL; some commands ask Google instead."""
    from t2i_cli.vertex import endpoint_store

    if context.invoked_subcommand in _CHECKS_GOOGLE:
        return
    for one in endpoint_store.list_records():
        if one.expires and one.expires < time.time():
            remote_session.warn_overdue(one.name)


@command(app, "t2i remote status", "t2i remote status t2i-sd15 --json")
def status(
    location: LocationOptions,
    endpoint: EndpointArg = None,
    json: JsonOpt = False,
) -> None:
    """Tell all about one endpoint; exit 0 if a model is deployed on it."""
    console.configure(json=json)
    from t2i_cli.vertex import machine_types, operations, provisioning, status

    with remote_session.connect_and_list(location, endpoint=endpoint) as (session, found):
        one = remote_session.find_deployment(found, endpoint)
        line = status.endpoint_status(one, session.client, machine_types.load_prices())
        notes = [note for each in one.deployed() for note in provisioning.status_notes(each)]
        details = {"parts": one.parts_text(), "under_way": False, "log": None, "notes": notes}
        if line.endpoint:
            details["log"] = operations.log_link(session.client, line.endpoint)
            try:
                under_way = operations.pending_operation(session.client, line.endpoint)
                details["under_way"] = under_way is not None
            except T2IError as error:
                details["under_way"] = None
                notes.append(f"What is under way cannot be looked at: {error.message}")
    if json:
        console.result_json(line.to_json() | details)
    else:
        if details["under_way"] is None:
            details["under_way"] = "not known"
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
    from t2i_cli.vertex import cloud_session, endpoint_selection

    with cloud_session.connect(location, endpoint=endpoint) as session:
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
    """Undeploy and delete an endpoint and its model, and look whether they are gone.

    What t2i did not make goes only by its number or full name, and never with --all.
    """
    console.configure(json=json, quiet=quiet)
    if all_ and endpoint:
        raise InputError("Give an endpoint or --all, not both.")
    with remote_session.connect_and_list(location, endpoint=endpoint, partial=True) as (
        session,
        found,
    ):
        if other := found.find_other(endpoint or ""):
            _remove_other(session, other, artifacts=bucket, yes=yes)
            return
        chosen = (
            list(found.deployments.values())
            if all_
            else [remote_session.find_deployment(found, endpoint)]
        )
        if all_ and chosen and not yes:
            console.confirm(f"Remove {', '.join(f'{c.name} (by {c.labels.by})' for c in chosen)}?")
        _remove(session, found, chosen, artifacts=bucket, all_=all_)


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
            with remote_session.connect_and_list(place, bucket, warn=False, partial=True) as (
                session,
                found,
            ):
                overdue = found.overdue(session.client.server_time())
                _remove(session, found, overdue, artifacts=True, all_=True, bucket=bucket)
        except T2IError as error:
            # What is past its TTL in another region must not wait for this one.
            failures.append(error)
            if len(places) > 1:
                console.warn(f"{place.region}: {error.message}")
    if failures:
        raise failures[0]


def _remove_other(
    session: "CloudSession", other: "Mapping[str, Any]", *, artifacts: bool, yes: bool
) -> None:
    """Remove an endpoint that t2i did not make, and that is named, once it is agreed to."""
    from t2i_cli.vertex import machine_types, removal, status

    if artifacts:
        raise InputError("t2i did not make that endpoint, and knows of no weights: no --bucket.")
    line = status.other_status(other, session.client, machine_types.load_prices())
    what = f"{line.title}: {line.model or 'no model'}, {line.machine or 'no machine'}, {line.state}"
    if not yes:
        console.confirm(f"t2i did not make this endpoint ({what}). Remove it?")
    removal.remove_other_endpoint(session.client, dict(other), console.note)
    if console.json:
        console.result_json({"removed": [other["name"]]})
    else:
        console.note(f"Removed: {other['name']}. Its models and weights stay.")


def _remove(
    session: "CloudSession",
    found: "Inventory",
    chosen: "list[Deployment]",
    *,
    artifacts: bool,
    all_: bool,
    bucket: str | None = None,
) -> None:
    """Remove deployments; raises T2IError. `all_`: all that there are were meant."""
    from t2i_cli.vertex import removal

    removal.remove_deployments(
        session.client, found, chosen, console, artifacts=artifacts, bucket=bucket, all_=all_
    )
    names = [one.name for one in chosen]
    if console.json:
        console.result_json({"removed": names})
    else:
        console.note(f"Removed: {', '.join(names)}." if names else "There was nothing to remove.")
