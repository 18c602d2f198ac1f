"""The http backend: any server of OpenAI's images API. Import it only when it is selected."""

from t2i_cli.backends.http.backend import HttpBackend
from t2i_cli.backends.http.options import HttpOptions

__all__ = ["HttpBackend", "HttpOptions"]
