"""Brings layers of LyCORIS into the form of a LoRA, exactly: two factors of the same change.

The formulas of the changes are LyCORIS's (`lycoris/functional/`: `loha.py`, `lokr.py`,
`general.py`). In them the rows of a convolution's change are its outputs, the columns its inputs
and the places of its kernel.
"""

from collections.abc import Mapping

from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.lycoris_shapes import lora_size

Factors = tuple[LibraryObject, LibraryObject]
"""(rows, rank) and (rank, columns); their product is the change of a layer's weights."""


def lora_factors(tensors: Mapping[str, LibraryObject]) -> Factors:
    """The factors of a layer by its tensors' roles, in float32 and with its alpha in them."""
    import torch

    given = {role: tensor.float() for role, tensor in tensors.items()}
    size = lora_size({role: tuple(tensor.shape) for role, tensor in given.items()})
    if "diff:diff" in given:
        return _of_whole(given["diff:diff"].flatten(1))
    alpha = float(given["alpha"]) if "alpha" in given else None
    if "mid" in given:
        up, rank = given["up"].flatten(1), given["mid"].shape[0]
        down = torch.einsum("mn...,nj->mj...", given["mid"], given["down"].flatten(1)).flatten(1)
    elif "loha:hada_w1_a" in given:
        rank = given["loha:hada_w1_b"].shape[0]
        one, other = (_half(given, f"loha:hada_w{n}", f"loha:hada_t{n}") for n in "12")
        # The product of two sums, taken place by place, is the sum over all pairs.
        up = torch.einsum("ik,il->ikl", one[0], other[0]).flatten(1)
        down = torch.einsum("kj,lj->klj", one[1], other[1]).flatten(0, 1)
        if size is not None and size.rank < up.shape[1]:
            up, down = _of_whole((one[0] @ one[1]) * (other[0] @ other[1]))
    else:
        ranks = [given[f"lokr:lokr_w{n}_b"].shape[0] for n in "12" if f"lokr:lokr_w{n}_b" in given]
        rank = ranks[-1] if ranks else None
        one, other = (_half(given, f"lokr:lokr_w{n}", f"lokr:lokr_t{n}") for n in "12")
        if size is not None and size.rank < one[0].shape[1] * other[0].shape[1]:
            up, down = _of_whole(torch.kron(one[0] @ one[1], other[0] @ other[1]))
        else:
            up, down = torch.kron(one[0], other[0]), torch.kron(one[1], other[1])
    return (up if alpha is None or rank is None else up * (alpha / rank)), down


def _half(given: Mapping[str, LibraryObject], name: str, tucker: str) -> Factors:
    """One of the two matrices that LoHa and LoKr are made of, as two factors."""
    import torch

    if name in given:
        return _of_whole(given[name].flatten(1))
    left, right = given[f"{name}_a"], given[f"{name}_b"]
    if tucker not in given:
        return left, right.flatten(1)
    return left.T.contiguous(), torch.einsum("ij...,jr->ir...", given[tucker], right).flatten(1)


def _of_whole(change: LibraryObject) -> Factors:
    """A matrix as two factors, of which one is the identity: the smaller one."""
    import torch

    rows, columns = change.shape
    if columns <= rows:
        return change, torch.eye(columns, dtype=change.dtype)
    return torch.eye(rows, dtype=change.dtype), change
