"""An endpoint that is still to be made: what it will take is known before it costs anything."""

from collections.abc import Iterator, Sequence
from threading import Event as Flag

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.vertex.endpoint import Endpoint
from t2i_cli.events import OnEvent
from t2i_cli.model_spec import ModelSpec
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.vertex import containers
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.location import Location


class PlannedEndpoint:
    """Stands for the endpoint of a model in the planning of requests, and makes no image.

    Raises InputError or ModelError where that cannot be served.
    """

    def __init__(self, model: str | None, kind: str | None) -> None:
        kind, _ = containers.choose_container(kind, None)
        source = containers.find_source(model, kind)
        self._target = Endpoint(
            place=Location(project="", region=""),
            known=EndpointRecord(name="to be made", model=source.label_name),
            serving=kind,
        )

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """What is known of the model that is to be deployed."""
        return self._target.spec(request.model)

    def check(self, request: ResolvedRequest) -> None:
        """Every request can be sent that was settled for the endpoint's model."""

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """Nothing that is known yet."""
        return {}

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """None: the deployment chooses."""
        return None

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """There is nothing to load."""

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """No outcome: it is for batches in which nothing is left to be made."""
        yield from ()

    def close(self) -> None:
        """There is nothing to close."""
