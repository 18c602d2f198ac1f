"""Images from this machine's own GPU or CPU, by diffusers."""

from typing import TYPE_CHECKING

from t2i_cli.backends.local.options import LocalOptions

if TYPE_CHECKING:
    from t2i_cli.backends.local.backend import LocalBackend

__all__ = ["LocalBackend", "LocalOptions"]


def __getattr__(name: str) -> object:
    # The warm worker's client has use for the options alone, and little time.
    if name == "LocalBackend":
        from t2i_cli.backends.local.backend import LocalBackend

        return LocalBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
