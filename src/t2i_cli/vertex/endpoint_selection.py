"""Selects an existing endpoint as the one in use, whoever created it."""

from t2i_cli.known_names import suggest_name
from t2i_cli.net.google_http import NotFoundError
from t2i_cli.vertex import endpoint_store, inventory
from t2i_cli.vertex.client import GoogleClient
from t2i_cli.vertex.endpoint_store import EndpointRecord


def use_endpoint(wanted: str, client: GoogleClient) -> EndpointRecord:
    """Look an endpoint up by full name, number or t2i's name, and store it as the one in use.

    Raises NotFoundError listing the existing endpoints.
    """
    deployments = inventory.list_endpoints(client).deployments
    made = deployments.get(wanted)
    name = made.endpoints[0]["name"] if made else client.location.endpoint(wanted)
    try:
        endpoint = client.call("GET", "aiplatform", name)
    except NotFoundError as error:
        every = client.list_all("aiplatform", f"{client.location.parent}/endpoints", "endpoints")
        there = [f"{one['name'].split('/')[-1]} ({one.get('displayName', '')})" for one in every]
        raise NotFoundError(
            f"There is no endpoint {wanted} in {client.location.region}.",
            hint=f"{suggest_name(wanted, deployments)}There is: {', '.join(there) or 'none'}.",
        ) from error
    found = endpoint_store.record_from_api(
        client.location.endpoint(endpoint["name"].split("/")[-1]), endpoint
    )
    endpoint_store.remember_endpoint(found, current=True)
    return found
