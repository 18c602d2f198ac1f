"""An endpoint that is not deployed yet, so that requests can be validated before it costs money."""

from collections.abc import Mapping

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
    """A backend that resolves requests for an endpoint to be deployed; it generates no images.

    `deployment` is the plan of its deployment, which the batch's plan then holds. Raises InputError
    or ModelError if the model cannot be served.
    """

    def __init__(
        self,
        model: str | None,
        serving: str | None,
        deployment: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(VertexOptions(retry_policy=RetryPolicy(retries=0)))
        serving, _ = containers.choose_container(serving, None)
        source = containers.find_source(model, serving)
        self._deployment = deployment
        self._planned = Endpoint(
            location=Location(project="", region=""),
            record=EndpointRecord(name="to be made", model=source.label_name),
            serving=serving,
        )

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """Describe the model that is to be deployed."""
        return self._planned.spec(request.model)

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """The plan of the deployment, if there is one: nothing else is known before it."""
        return {} if self._deployment is None else {"deployment": dict(self._deployment)}
