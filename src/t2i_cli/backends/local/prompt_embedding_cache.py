"""Text encoded once: the same prompt, and above all the same negative one, comes again and again.

Each text is encoded alone, whatever stands beside it in a pass, so that it means the same to the
last bit in a pass of any size.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator

from t2i_cli.models.libraries import LibraryObject

MAX_CACHE_BYTES = 256 * 2**20
"""Of encoded texts kept in the host's memory; those not used for longest go first."""

_ENCODERS = {"CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"}
"""Encoders that make each row of their output of the same row of their input alone."""


def cache_text_embeddings(pipe: LibraryObject) -> None:
    """Have a pipeline's text encoders give what they gave before for the same text.

    Put around whatever moves an encoder to its device, so that it is left where it is.
    """
    for module in pipe.components.values():
        if type(module).__name__ in _ENCODERS and not isinstance(module.forward, _Remembering):
            module.forward = _Remembering(module.forward)


class _Remembering:
    """Stands in for an encoder's `forward`."""

    def __init__(self, forward: Callable[..., LibraryObject]) -> None:
        self._forward = forward
        self._known: OrderedDict[tuple[object, ...], LibraryObject] = OrderedDict()
        self._bytes = 0

    def __call__(
        self, input_ids: LibraryObject = None, *args: LibraryObject, **kwargs: LibraryObject
    ) -> LibraryObject:
        """Encode token ids (batch x tokens) as the encoder itself would, row by row."""
        if args or input_ids is None or input_ids.ndim != 2 or not _by_row(kwargs, input_ids):
            return self._forward(input_ids, *args, **kwargs)
        rows = []
        for at in range(len(input_ids)):
            row = {name: _row(value, at) for name, value in kwargs.items()}
            rows.append(self._encoded(input_ids[at : at + 1], row))
        return _joined(rows, input_ids.device)

    def _encoded(self, ids: LibraryObject, kwargs: dict[str, LibraryObject]) -> LibraryObject:
        key = (ids.cpu().numpy().tobytes(), *((n, _key(v)) for n, v in sorted(kwargs.items())))
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        found = _mapped(self._forward(ids, **kwargs), lambda tensor: tensor.detach().cpu())
        self._known[key] = found
        self._bytes += _size(found)
        while self._bytes > MAX_CACHE_BYTES and len(self._known) > 1:
            _, oldest = self._known.popitem(last=False)
            self._bytes -= _size(oldest)
        return found


def _by_row(kwargs: dict[str, LibraryObject], ids: LibraryObject) -> bool:
    """Whether every argument is plain, or has a row for each text."""
    return all(
        value is None
        or isinstance(value, bool | int | str)
        or (hasattr(value, "shape") and value.shape[:1] == ids.shape[:1])
        for value in kwargs.values()
    )


def _row(value: LibraryObject, at: int) -> LibraryObject:
    return value[at : at + 1] if hasattr(value, "shape") else value


def _key(value: LibraryObject) -> object:
    return value.cpu().numpy().tobytes() if hasattr(value, "shape") else value


def _mapped(
    output: LibraryObject, change: Callable[[LibraryObject], LibraryObject]
) -> LibraryObject:
    """A model's output (of tensors, and tuples of them) with every tensor changed."""
    return type(output)(
        **{
            name: tuple(map(change, value)) if isinstance(value, tuple) else change(value)
            for name, value in output.items()
        }
    )


def _joined(outputs: list[LibraryObject], device: LibraryObject) -> LibraryObject:
    """The outputs of single texts as one of them all."""
    import torch

    def join(values: list[LibraryObject]) -> LibraryObject:
        if isinstance(values[0], tuple):
            return tuple(join(list(parts)) for parts in zip(*values, strict=True))
        return torch.cat(values).to(device)

    first = outputs[0]
    return type(first)(**{name: join([o[name] for o in outputs]) for name in first})


def _size(output: LibraryObject) -> int:
    return sum(tensor.nbytes for tensor in _tensors(output))


def _tensors(output: LibraryObject) -> Iterator[LibraryObject]:
    for value in output.values():
        yield from value if isinstance(value, tuple) else (value,)
