"""Cache of prompt embeddings: prompts, and above all negative prompts, repeat.

Each text is encoded on its own, not with the others of its batch, so that its embedding is
bit-identical in a batch of any size.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator

from t2i_cli.models.libraries import LibraryObject

MAX_CACHE_BYTES = 256 * 2**20
"""Maximum bytes of embeddings per encoder, in the host's memory; evicts the least recently used."""

_ENCODERS = {"CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"}
"""Encoders whose output rows depend on the same row of their input only."""


def cache_text_embeddings(pipe: LibraryObject) -> None:
    """Wrap the `forward` of a pipeline's text encoders with a cache.

    It wraps offload hooks as well, so that a cached text moves no encoder to its device.
    """
    for module in pipe.components.values():
        if type(module).__name__ in _ENCODERS and not isinstance(module.forward, _CachedForward):
            module.forward = _CachedForward(module.forward)


class _CachedForward:
    """Replaces an encoder's `forward`, with an LRU cache of its outputs by row."""

    def __init__(self, forward: Callable[..., LibraryObject]) -> None:
        self._forward = forward
        self._cache: OrderedDict[tuple[object, ...], LibraryObject] = OrderedDict()
        self._bytes = 0

    def __call__(
        self, input_ids: LibraryObject = None, *args: LibraryObject, **kwargs: LibraryObject
    ) -> LibraryObject:
        """Encode integer token ids (batch x tokens) row by row, to the encoder's output type."""
        if args or input_ids is None or input_ids.ndim != 2 or not _is_row_wise(kwargs, input_ids):
            return self._forward(input_ids, *args, **kwargs)
        rows = []
        for index in range(len(input_ids)):
            row = {name: _row(value, index) for name, value in kwargs.items()}
            rows.append(self._encode(input_ids[index : index + 1], row))
        return _concatenate(rows, input_ids.device)

    def _encode(self, ids: LibraryObject, kwargs: dict[str, LibraryObject]) -> LibraryObject:
        key = (ids.cpu().numpy().tobytes(), *((n, _key_part(v)) for n, v in sorted(kwargs.items())))
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        output = _map_tensors(self._forward(ids, **kwargs), lambda tensor: tensor.detach().cpu())
        self._cache[key] = output
        self._bytes += _size_bytes(output)
        while self._bytes > MAX_CACHE_BYTES and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._bytes -= _size_bytes(oldest)
        return output


def _is_row_wise(kwargs: dict[str, LibraryObject], ids: LibraryObject) -> bool:
    """Whether every argument is a plain value, or has one row per text."""
    return all(
        value is None
        or isinstance(value, bool | int | str)
        or (hasattr(value, "shape") and value.shape[:1] == ids.shape[:1])
        for value in kwargs.values()
    )


def _row(value: LibraryObject, index: int) -> LibraryObject:
    return value[index : index + 1] if hasattr(value, "shape") else value


def _key_part(value: LibraryObject) -> object:
    return value.cpu().numpy().tobytes() if hasattr(value, "shape") else value


def _map_tensors(
    output: LibraryObject, function: Callable[[LibraryObject], LibraryObject]
) -> LibraryObject:
    """Apply a function to every tensor of a model's output (tensors, and tuples of them)."""
    return type(output)(
        **{
            name: tuple(map(function, value)) if isinstance(value, tuple) else function(value)
            for name, value in output.items()
        }
    )


def _concatenate(outputs: list[LibraryObject], device: LibraryObject) -> LibraryObject:
    """Concatenate the outputs of single texts to one output on `device`."""
    import torch

    def concatenate(values: list[LibraryObject]) -> LibraryObject:
        if isinstance(values[0], tuple):
            return tuple(concatenate(list(parts)) for parts in zip(*values, strict=True))
        return torch.cat(values).to(device)

    first = outputs[0]
    return type(first)(**{name: concatenate([o[name] for o in outputs]) for name in first})


def _size_bytes(output: LibraryObject) -> int:
    return sum(tensor.nbytes for tensor in _tensors(output))


def _tensors(output: LibraryObject) -> Iterator[LibraryObject]:
    for value in output.values():
        yield from value if isinstance(value, tuple) else (value,)
