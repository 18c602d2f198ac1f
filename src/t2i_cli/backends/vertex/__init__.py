"""The vertex backend: calls a Vertex AI endpoint. Import it only when it is selected."""

from t2i_cli.backends.vertex.backend import VertexBackend
from t2i_cli.backends.vertex.options import VertexOptions

__all__ = ["VertexBackend", "VertexOptions"]
