"""Choosing an endpoint that is there already, whoever made it."""

from t2i_cli.vertex import known, survey
from t2i_cli.vertex.known import Known
from t2i_cli.vertex.rest import NotFoundError, Rest


def use(wanted: str, rest: Rest) -> Known:
    """Look an endpoint up by full name, number or t2i's name, and keep it as the one in use.

    Raises NotFoundError naming those that there are.
    """
    made = survey.endpoints(rest).deployments.get(wanted)
    name = made.endpoints[0]["name"] if made else rest.place.endpoint(wanted)
    try:
        endpoint = rest.call("GET", "aiplatform", name)
    except NotFoundError as error:
        every = rest.pages("aiplatform", f"{rest.place.parent}/endpoints", "endpoints")
        there = [f"{one['name'].split('/')[-1]} ({one['displayName']})" for one in every]
        raise NotFoundError(
            f"There is no endpoint {wanted} in {rest.place.region}.",
            hint=f"There is: {', '.join(there) or 'none'}.",
        ) from error
    found = known.of(rest.place.endpoint(endpoint["name"].split("/")[-1]), endpoint)
    known.remember(found, current=True)
    return found
