"""The local backend: diffusers pipelines on this machine's GPU or CPU."""

from typing import TYPE_CHECKING

from t2i_cli.backends.local.options import LocalOptions

if TYPE_CHECKING:
    from t2i_cli.backends.local.backend import LocalBackend

__all__ = ["LocalBackend", "LocalOptions"]


def __getattr__(name: str) -> object:
    # Lazy: the warm worker's client needs only the options, and has to start fast.
    if name == "LocalBackend":
        from t2i_cli.backends.local.backend import LocalBackend

        return LocalBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
