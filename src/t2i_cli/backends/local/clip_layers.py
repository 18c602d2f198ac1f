"""`clip_skip` with transformers 5, whose CLIP text model has no `text_model` any more."""

from collections.abc import Iterator
from contextlib import contextmanager

from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request import ResolvedRequest

_ATTRIBUTE = "text_model"


@contextmanager
def skipping_layers(pipe: LibraryObject, request: ResolvedRequest) -> Iterator[None]:
    """Let a request's `clip_skip` find the last layer norm where diffusers looks for it.

    Pipelines of Stable Diffusion 1 take it from `text_encoder.text_model`, which is the encoder
    itself now. The attribute is there for this run only: its presence also tells old models.
    """
    encoder = getattr(pipe, "text_encoder", None)
    wanted = "clip_skip" in dict(request.extras or ())
    if not wanted or hasattr(encoder, _ATTRIBUTE) or not hasattr(encoder, "final_layer_norm"):
        yield
        return
    cls = type(encoder)
    setattr(cls, _ATTRIBUTE, property(lambda itself: itself))
    try:
        yield
    finally:
        delattr(cls, _ATTRIBUTE)
