"""Cache of model specifications and checks, so that a batch asks a backend once per model."""

from collections.abc import Callable

from t2i_cli.backend import Backend
from t2i_cli.errors import (
    InputError,
    InternalError,
    ModelError,
    OutOfMemoryError,
    T2IError,
    internal_error,
)
from t2i_cli.model_spec import ModelSpec
from t2i_cli.request import GenerateRequest, ResolvedRequest

ROW_ERRORS = (InputError, ModelError, OutOfMemoryError, InternalError)
"""Errors that a row can cause; others, as of the network, end the batch."""

OnBug = Callable[[T2IError], None]

ModelKey = tuple[object, ...]
"""What a request names as its model, by `model_key()`."""


class ModelCache:
    """Caches a backend's answers on models, errors included."""

    def __init__(self, backend: Backend, on_bug: OnBug = lambda _: None) -> None:
        self._backend = backend
        self._on_bug = on_bug
        self._specs: dict[ModelKey, ModelSpec | T2IError] = {}
        self._checked: dict[tuple[object, ...], T2IError | None] = {}

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """The specification of the model that a request names. Raises T2IError."""
        key = request.model_key()
        if key not in self._specs:
            try:
                self._specs[key] = self._backend.describe(request)
            except Exception as raised:  # noqa: BLE001 - becomes the problem of its rows
                self._specs[key] = row_error(raised, self._on_bug)
        found = self._specs[key]
        if isinstance(found, T2IError):
            raise found
        return found

    def cached_spec(self, request: GenerateRequest) -> ModelSpec | None:
        """The specification if `describe` has returned it before, else `None`."""
        found = self._specs.get(request.model_key())
        return found if isinstance(found, ModelSpec) else None

    def check(self, request: ResolvedRequest) -> None:
        """Raise T2IError if the backend cannot make the request; asks once per batch key."""
        key = request.batch_key()
        if key not in self._checked:
            try:
                self._backend.check(request)
            except Exception as raised:  # noqa: BLE001 - becomes the problem of its rows
                self._checked[key] = row_error(raised, self._on_bug)
            else:
                self._checked[key] = None
        if cached_error := self._checked[key]:
            raise cached_error


def row_error(raised: Exception, on_bug: OnBug = lambda _: None) -> T2IError:
    """The error as rows are told of it; raises those that no row causes.

    `on_bug` is called with an unexpected one, whose `__cause__` has the traceback.
    """
    if isinstance(raised, ROW_ERRORS):
        return raised
    if isinstance(raised, T2IError | MemoryError):
        raise raised
    error = internal_error(raised)
    on_bug(error)
    return error
