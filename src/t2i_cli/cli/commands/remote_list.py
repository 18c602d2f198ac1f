"""`t2i remote list` and `t2i remote cost`: every endpoint, whoever made it, and its price."""

from typing import TYPE_CHECKING, Annotated

import typer

from t2i_cli.cli.commands import remote_session
from t2i_cli.cli.options import JsonOpt
from t2i_cli.settings.options import LocationOptions
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from t2i_cli.vertex.client import GoogleClient
    from t2i_cli.vertex.inventory import Deployment
    from t2i_cli.vertex.status import CostReport, EndpointStatus

AllRegionsFlag = Annotated[
    bool, typer.Option("--all-regions", help="Look into every region of Vertex AI.")
]


def list_endpoints(
    location: LocationOptions,
    all_regions: AllRegionsFlag = False,
    json: JsonOpt = False,
) -> None:
    """List every endpoint here, whoever made it: what it did and what it cost so far."""
    console.configure(json=json)
    from t2i_cli.vertex import status

    found = _find_endpoints(location, all_regions=all_regions)
    if json:
        for line in found.endpoints:
            console.result_json(line.to_json())
        return
    if not any(line.made_by_t2i for line in found.endpoints):
        console.note(f"There is nothing of t2i's {'in any region' if all_regions else 'here'}.")
    if found.endpoints:
        console.table(status.status_table(found.endpoints, regions=all_regions))
        console.note(f"Prices are estimates (table: {found.prices.date}).")
    if not all_regions:
        console.note("Only this region was looked into; --all-regions looks into every one.")


def cost(
    location: LocationOptions,
    all_regions: AllRegionsFlag = False,
    json: JsonOpt = False,
) -> None:
    """Estimate what the endpoints here cost, whoever made them: an hour, a day, so far."""
    console.configure(json=json)
    bill = _find_endpoints(location, all_regions=all_regions)
    if json:
        console.result_json(bill.to_json())
        return
    for text in bill.text():
        console.result(text)


def _find_endpoints(location: LocationOptions, *, all_regions: bool) -> "CostReport":
    """The endpoints of the location, or with `all_regions` of the whole project.

    In other regions than that of the location only what has an endpoint is found.
    """
    from t2i_cli.vertex import inventory, machine_types, regions, status

    with remote_session.connect_and_list(location) as (session, here):
        client, prices = session.client, machine_types.load_prices()
        found = status.cost_report(here, client, prices)
        if not all_regions:
            return found

        def ask(there: "GoogleClient") -> "tuple[list[EndpointStatus], list[Deployment]]":
            listed = inventory.list_endpoints(there)
            overdue = listed.overdue(there.server_time())
            return status.all_statuses(listed, there, prices), overdue

        names = [name for name in regions.list_regions(client) if name != client.location.region]
        elsewhere = regions.ask_regions(client, names, ask)
    for region, (_, overdue) in elsewhere.answers.items():
        inventory.warn_overdue(overdue, console.warn, region)
    for text in elsewhere.failure_texts():
        console.warn(text)
    more = [one for statuses, _ in elsewhere.answers.values() for one in statuses]
    return found.with_regions(more, not_asked=list(elsewhere.failures))
