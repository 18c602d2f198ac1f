"""Layers of CLIP that are left out, with transformers 5, whose text model has no `text_model`."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request import ResolvedRequest

_ATTRIBUTE = "text_model"
_ARGUMENT = "clip_skip"


def skipped_layers(request: ResolvedRequest) -> int | None:
    """How many layers a request leaves out, as diffusers counts; `None` if it does not say.

    The field counts the last layer, too, as AUTOMATIC1111 does.
    """
    if request.clip_skip is not None:
        return request.clip_skip - 1
    skipped = dict(request.extras or ()).get(_ARGUMENT)
    return int(skipped) if isinstance(skipped, int | float) else None


@contextmanager
def skipping_layers(pipe: LibraryObject, request: ResolvedRequest) -> Iterator[None]:
    """Let a request's `clip_skip` find the last layer norm where diffusers looks for it.

    Pipelines of Stable Diffusion 1 take it from `text_encoder.text_model`, which is the encoder
    itself now. The attribute is there for this run only: its presence also tells old models.
    """
    encoder = getattr(pipe, "text_encoder", None)
    wanted = skipped_layers(request) is not None
    if not wanted or hasattr(encoder, _ATTRIBUTE) or not hasattr(encoder, "final_layer_norm"):
        yield
        return
    cls = type(encoder)
    setattr(
        cls,
        _ATTRIBUTE,
        property(lambda own: SimpleNamespace(final_layer_norm=lambda x: normalize_layer(own, x))),
    )
    try:
        yield
    finally:
        delattr(cls, _ATTRIBUTE)


def normalize_layer(encoder: LibraryObject, states: LibraryObject) -> LibraryObject:
    """A layer (batch x tokens x width) after the encoder's last layer norm, where the layer is.

    The encoder may be elsewhere: offloaded, while the layer comes from the cache.
    """
    has_own = hasattr(encoder, "final_layer_norm")
    norm = (encoder if has_own else getattr(encoder, _ATTRIBUTE)).final_layer_norm
    return norm(states.to(norm.weight.device)).to(states.device)
