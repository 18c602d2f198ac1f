"""The gemini backend: Google's own image models. Import it only when it is selected."""

from t2i_cli.backends.gemini.backend import GeminiBackend
from t2i_cli.backends.gemini.options import GeminiOptions

__all__ = ["GeminiBackend", "GeminiOptions"]
