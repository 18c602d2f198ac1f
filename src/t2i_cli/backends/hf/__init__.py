"""The hf backend: Hugging Face Inference Providers. Import it only when it is selected."""

from t2i_cli.backends.hf.backend import HfBackend
from t2i_cli.backends.hf.options import HfOptions

__all__ = ["HfBackend", "HfOptions"]
