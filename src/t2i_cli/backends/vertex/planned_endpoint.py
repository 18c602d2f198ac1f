"""An endpoint that is still to be made: what it will take is known before it costs anything."""

from t2i_cli.backends.vertex.backend import VertexBackend
from t2i_cli.backends.vertex.endpoint import Endpoint
from t2i_cli.backends.vertex.options import VertexOptions
from t2i_cli.model_spec import ModelSpec
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.request import GenerateRequest, ResolvedRequest
from t2i_cli.vertex import containers
from t2i_cli.vertex.endpoint_store import EndpointRecord
from t2i_cli.vertex.location import Location


class PlannedEndpoint(VertexBackend):
    """Stands for the endpoint of a model in the planning of requests, and makes no image.

    Raises InputError or ModelError where that cannot be served.
    """

    def __init__(self, model: str | None, kind: str | None) -> None:
        super().__init__(VertexOptions(retry_policy=RetryPolicy(retries=0)))
        kind, _ = containers.choose_container(kind, None)
        source = containers.find_source(model, kind)
        self._planned = Endpoint(
            place=Location(project="", region=""),
            known=EndpointRecord(name="to be made", model=source.label_name),
            serving=kind,
        )

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """What is known of the model that is to be deployed."""
        return self._planned.spec(request.model)

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """Nothing that is known yet."""
        return {}
