"""Signatures of a network's calls: calls with equal signatures launch the same kernels."""

import hashlib
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2i_cli.models.libraries import LibraryObject

_CONSTANTS = (type(None), bool, int, float, str)


@dataclass(frozen=True, kw_only=True)
class FlatCall:
    """The arguments of a call as a flat list, and how they are nested (torch's pytree)."""

    leaves: tuple[Any, ...]
    spec: Any

    def rebuild(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with other leaves in the place of these."""
        from torch.utils import _pytree as pytree

        args, kwargs = pytree.tree_unflatten(list(leaves), self.spec)
        return args, kwargs

    def signature(self) -> Hashable | None:
        """Shapes, strides, dtypes, devices and constants; `None` if an argument is neither."""
        import torch

        parts: list[Hashable] = [
            self.spec,
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        ]
        for leaf in self.leaves:
            if isinstance(leaf, torch.Tensor):
                layout = (
                    (tuple(leaf.shape), leaf.stride()) if leaf.layout == torch.strided else None
                )
                if layout is None:
                    return None
                parts.append((*layout, leaf.dtype, str(leaf.device)))
            elif isinstance(leaf, (*_CONSTANTS, torch.dtype, torch.device)):
                # The type as well: 1, 1.0 and True are equal.
                parts.append((type(leaf), leaf))
            else:
                return None
        return tuple(parts)

    def shapes(self) -> str:
        """The shapes and dtypes of all tensors as a text, whatever the other arguments are."""
        import torch

        tensors = [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]
        whole = " ".join(f"{tuple(one.shape)}{one.dtype}" for one in tensors)
        first = "x".join(map(str, tensors[0].shape)) if tensors else "nothing"
        return f"{first} {hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def flatten_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> FlatCall:
    """The call's arguments as a FlatCall; nested tuples, lists and dicts are taken apart."""
    from torch.utils import _pytree as pytree

    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    return FlatCall(leaves=tuple(leaves), spec=spec)


def timestep_as_tensor(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], device: object
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with a `timestep` that is a number as the tensor that diffusers makes of it.

    As a number it would be a constant of the call, of which every step has another. The dtypes
    are those of `UNet2DConditionModel.get_time_embed`.
    """
    import torch

    args, kwargs = tuple(args), dict(kwargs)
    names = list(inspect.signature(forward).parameters)
    place = names.index("timestep") if "timestep" in names else len(args)
    value = args[place] if place < len(args) else kwargs.get("timestep")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return args, kwargs
    dtype = torch.float64 if isinstance(value, float) else torch.int64
    tensor = torch.tensor([value], dtype=dtype, device=device)  # type: ignore[arg-type]
    if place < len(args):
        return (*args[:place], tensor, *args[place + 1 :]), kwargs
    return args, kwargs | {"timestep": tensor}


def network_state(network: LibraryObject) -> int:
    """A hash of all that a recorded call has fixed: weights' addresses, hooks, plain attributes.

    It changes with LoRA switches and scales, attention processors, offload hooks, moves and casts.
    """
    import torch

    found: list[Hashable] = [
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    ]
    for module in network.modules():
        attributes = vars(module)
        for name, value in attributes.items():
            if isinstance(value, _CONSTANTS):
                found.append((name, value))
            elif name == "processor":  # of attention: no module, and replaced as a whole
                found.append((type(value), id(value), repr(sorted(vars(value).items()))))
            elif callable(value):
                found.append((name, id(value)))
            elif name[0] != "_" and isinstance(value, dict | list | tuple):
                found.append((name, repr(value)))  # LoRA: scales and active adapters by name
        found += [len(attributes["_forward_hooks"]), len(attributes["_forward_pre_hooks"])]
        found.append(repr(attributes.get("_active_adapter")))
        for tensors in (attributes["_parameters"], attributes["_buffers"]):
            for tensor in tensors.values():
                if tensor is not None:
                    found.append(
                        (tensor.data_ptr(), tensor._version, tensor.dtype, tensor.stride())
                    )
    return hash(tuple(found))
