"""Connects to Google Cloud: the credentials, and a client for each region that is named."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from t2i_cli.net import google_credentials
from t2i_cli.settings.options import DeploymentSpec, LocationOptions
from t2i_cli.vertex import deployment_planning, location
from t2i_cli.vertex.client import GoogleClient


@dataclass(frozen=True)
class CloudSession:
    """A client, the account of its credentials, and clients of further regions to try in turn."""

    client: GoogleClient
    account: str | None
    others: tuple[GoogleClient, ...] = ()

    @property
    def clients(self) -> tuple[GoogleClient, ...]:
        """The clients of all regions."""
        return (self.client, *self.others)


@contextmanager
def connect(
    options: LocationOptions | None = None, *, endpoint: str | None = None, several: bool = False
) -> Iterator[CloudSession]:
    """A session with the default credentials, of `several` regions where the options name them.

    Raises AccessError and InputError.
    """
    found, login = google_credentials.find_credentials()
    places = (
        location.find_locations(options, login_project=login.project)
        if several
        else [location.find_location(options, endpoint=endpoint, login_project=login.project)]
    )
    provider = google_credentials.TokenProvider(found)
    with ExitStack() as stack:
        client, *others = (stack.enter_context(GoogleClient(place, provider)) for place in places)
        client.auth_headers()
        # A person's credentials name their account only after the first token.
        yield CloudSession(client, google_credentials.account_name(found), tuple(others))


@contextmanager
def connect_to_deploy(spec: DeploymentSpec, options: LocationOptions) -> Iterator[CloudSession]:
    """A session, after the options are checked: a mistake in them needs no credentials."""
    deployment_planning.check_regions(spec, location.locations_without_account(options))
    with connect(options, several=True) as session:
        yield session
