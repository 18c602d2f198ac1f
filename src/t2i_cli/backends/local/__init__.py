"""Images from this machine's own GPU or CPU, by diffusers."""

from t2i_cli.backends.local.backend import LocalBackend
from t2i_cli.backends.local.options import LocalOptions

__all__ = ["LocalBackend", "LocalOptions"]
