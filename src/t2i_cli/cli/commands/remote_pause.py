"""`t2i remote pause` and `t2i remote resume`: end an endpoint's cost, and deploy it again."""

from typing import Annotated

import typer

from t2i_cli.cli import options
from t2i_cli.cli.commands import remote_session
from t2i_cli.cli.commands.remote_deploy import DryRunOpt
from t2i_cli.cli.commands.remote_session import EndpointArg
from t2i_cli.settings import defaults
from t2i_cli.settings.options import LocationOptions
from t2i_cli.terminal.console import console


def pause(
    location: LocationOptions,
    endpoint: EndpointArg = None,
    ttl: Annotated[
        str | None,
        typer.Option("--ttl", help="How long it may stay paused. [default: its TTL stays]"),
    ] = None,
    dry_run: DryRunOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
) -> None:
    """Undeploy an endpoint, which ends its cost; the endpoint and its model stay."""
    console.configure(json=json, quiet=quiet)
    from t2i_cli.vertex import machine_types, pause, status

    seconds = None if ttl is None else pause.parse_ttl(ttl)
    with remote_session.connect_and_list(location, endpoint=endpoint) as (session, found):
        one = remote_session.find_deployment(found, endpoint)
        line = status.endpoint_status(one, session.client, machine_types.load_prices())
        if not dry_run:
            pause.pause_deployment(session.client, one, console.note, ttl=seconds)
    if json:
        console.result_json(
            {
                "name": one.name,
                "endpoint": line.endpoint,
                "paused": not dry_run,
                "usd_per_hour_before": line.usd_per_hour,
            }
        )
    elif dry_run:
        console.result(
            f"{one.name}: {line.state}, {line.hourly_text} USD per hour; paused it would cost 0.00"
        )
    else:
        console.result(one.name)
        console.note(
            f"{one.name} is paused: no machine of it is paid for any more. "
            f"`t2i remote resume {one.name}` deploys it again; `t2i remote reap` removes it "
            "after its TTL."
        )
        for weights in one.weights_text():
            console.note(f"Its weights stay, and are paid for: {weights}.")


def resume(
    location: LocationOptions,
    endpoint: EndpointArg = None,
    ttl: Annotated[str, typer.Option("--ttl", help="How long it may live, from now on.")] = (
        defaults.TTL
    ),
    max_cost: Annotated[
        float | None,
        typer.Option("--max-cost", help="Refuse if it could cost more USD until its TTL."),
    ] = None,
    scheduler_account: Annotated[
        str | None,
        typer.Option(
            "--scheduler-account",
            help="Have a Cloud Scheduler job undeploy it, as this one. [default: as before]",
        ),
    ] = None,
    yes: options.YesOpt = False,
    dry_run: DryRunOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
) -> None:
    """Deploy a paused endpoint again as it was; run it again to go on after a failure."""
    console.configure(json=json, quiet=quiet)
    from t2i_cli.vertex import pause, plan_consent

    asked = pause.resumption_options(ttl, max_cost, scheduler_account)
    with remote_session.connect_and_list(location, endpoint=endpoint) as (session, found):
        one = remote_session.find_deployment(found, endpoint)
        resumption = pause.plan_resumption(one, session, asked)
        plan = resumption.plan
        if dry_run:
            if json:
                console.result_json(plan.to_json())
            else:
                console.result(plan.text())
            return
        if plan.service_account:
            # It stands in the endpoint's description, which others may have changed.
            console.note(f"{'runs as':<12} {plan.service_account}")
        plan_consent.confirm_plan(plan, session.client, console, yes=yes)
        record = pause.resume_deployment(resumption, session, console)
    if json:
        console.result_json({"endpoint": record.name, "dns": record.dns} | plan.to_json())
    else:
        console.result(record.name)
