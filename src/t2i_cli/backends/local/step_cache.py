"""The step cache: diffusers' first-block hook on a pipeline's transformer, for one pass.

Where the first block's residual changed little since the last step, the other blocks are skipped
and their last residual is added again.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from t2i_cli.errors import InputError
from t2i_cli.models import libraries
from t2i_cli.models.libraries import LibraryObject


@contextmanager
def step_caching(pipe: LibraryObject, threshold: float | None) -> Iterator[None]:
    """Skip blocks below the threshold in this context, which is that of one pass.

    The hook is removed at its end, and its state with it: nothing of a pass is left to the next
    one, whatever ended it. Without a threshold nothing is touched. Raises InputError for a
    transformer that the hook does not know.
    """
    if not threshold:
        yield
        return
    config = libraries.import_diffusers().FirstBlockCacheConfig(threshold=threshold)
    transformer: LibraryObject = getattr(pipe, "transformer", None)
    try:
        transformer.enable_cache(config)
    except (AttributeError, IndexError, ValueError) as error:  # no such mixin, blocks, or hook
        raise InputError(
            f"A {type(transformer).__name__} takes no step cache: diffusers' first-block hook does "
            "not know it.",
            field="step_cache",
        ) from error
    own_forward = transformer.__dict__.get("forward")
    try:
        if not _sets_contexts(type(pipe)):
            transformer.forward = _ForwardInContexts(transformer, transformer.forward)
        yield
    finally:
        if own_forward is not None:
            transformer.forward = own_forward
        else:
            transformer.__dict__.pop("forward", None)
        transformer.disable_cache()


def _sets_contexts(cls: LibraryObject) -> bool:
    """Whether the pipeline tells its calls with and without the prompt apart by itself."""
    return ".cache_context(" in inspect.getsource(cls.__call__)


class _ForwardInContexts:
    """Replaces a transformer's `forward`: each call of a step has a cache state of its own.

    With guidance a pipeline calls its transformer twice a step, and what one call computed says
    nothing of the other. The calls of a step have the same timestep.
    """

    def __init__(self, transformer: LibraryObject, forward: Callable[..., LibraryObject]) -> None:
        self._transformer = transformer
        self._forward = forward
        self._timestep: object = None
        self._calls = 0

    def __call__(self, *args: LibraryObject, **kwargs: LibraryObject) -> LibraryObject:
        """Call the transformer; `timestep` is given by name, as every pipeline does."""
        timestep: LibraryObject = kwargs.get("timestep")
        current = timestep.flatten()[0].item() if hasattr(timestep, "flatten") else timestep
        self._calls = self._calls + 1 if current == self._timestep else 0
        self._timestep = current
        with self._transformer.cache_context(f"call-{self._calls}"):
            return self._forward(*args, **kwargs)
