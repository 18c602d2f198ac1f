"""Choosing an endpoint that is there already, whoever made it."""

from t2i_cli.net.google_http import NotFoundError
from t2i_cli.vertex import endpoint_store, inventory
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.endpoint_store import EndpointRecord


def use_endpoint(wanted: str, rest: GoogleClient) -> EndpointRecord:
    """Look an endpoint up by full name, number or t2i's name, and keep it as the one in use.

    Raises NotFoundError naming those that there are.
    """
    made = inventory.list_endpoints(rest).deployments.get(wanted)
    name = made.endpoints[0]["name"] if made else rest.place.endpoint(wanted)
    try:
        endpoint = rest.call("GET", "aiplatform", name)
    except NotFoundError as error:
        every = rest.list_all("aiplatform", f"{rest.place.parent}/endpoints", "endpoints")
        there = [f"{one['name'].split('/')[-1]} ({one['displayName']})" for one in every]
        raise NotFoundError(
            f"There is no endpoint {wanted} in {rest.place.region}.",
            hint=f"There is: {', '.join(there) or 'none'}.",
        ) from error
    found = endpoint_store.record_from_api(
        rest.place.endpoint(endpoint["name"].split("/")[-1]), endpoint
    )
    endpoint_store.remember_endpoint(found, current=True)
    return found
