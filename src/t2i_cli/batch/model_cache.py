"""The models that a batch names: each is described and checked once."""

from t2i_cli.backend import Backend
from t2i_cli.errors import InputError, ModelError, OutOfMemoryError, T2IError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.request import GenerateRequest, ResolvedRequest

ROW_FAULTS = (InputError, ModelError, OutOfMemoryError)
"""What a row can be blamed for; a network that fails is no fault of a row."""

ModelName = tuple[object, object]


class ModelCache:
    """What a backend says of models, remembered, refusals too."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._specs: dict[ModelName, ModelSpec | T2IError] = {}
        self._checked: dict[tuple[object, ...], T2IError | None] = {}

    def describe(self, model: object, revision: object) -> ModelSpec:
        """What is known of a model, as a request names it. Raises T2IError."""
        name = (model, revision)
        if name not in self._specs:
            try:
                self._specs[name] = self._backend.describe(
                    GenerateRequest(prompt="-", model=model, revision=revision)  # type: ignore[arg-type]
                )
            except ROW_FAULTS as error:
                self._specs[name] = error
        found = self._specs[name]
        if isinstance(found, T2IError):
            raise found
        return found

    def known(self, model: object, revision: object) -> ModelSpec | None:
        """What `describe` has found of a model before, if it has."""
        found = self._specs.get((model, revision))
        return found if isinstance(found, ModelSpec) else None

    def check(self, request: ResolvedRequest) -> None:
        """Raise if the backend cannot make the request; it is asked once for those alike."""
        key = request.batch_key()
        if key not in self._checked:
            try:
                self._backend.check(request)
            except ROW_FAULTS as error:
                self._checked[key] = error
            else:
                self._checked[key] = None
        if refusal := self._checked[key]:
            raise refusal
