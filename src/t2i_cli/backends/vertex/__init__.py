"""The vertex backend: calls of an endpoint of Vertex AI. Import it only when it is chosen."""

from t2i_cli.backends.vertex.backend import VertexBackend
from t2i_cli.backends.vertex.options import VertexOptions

__all__ = ["VertexBackend", "VertexOptions"]
