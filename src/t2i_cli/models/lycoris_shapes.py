"""The size of the LoRA that a layer of LyCORIS is: LoHa, LoKr, LoCon with Tucker factors, whole.

A change of a layer's weights is a matrix (out, in x kernel), of some rank: so it is a LoRA of that
rank. Of LoHa (w1_a w1_b) * (w2_a w2_b) that is the product of both ranks, of LoKr w1 (x) w2 that of
its two factors, and never more than the matrix has rows or columns.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

Shape = tuple[int, ...]
_TUCKER_DIMENSIONS = 4


class LoraSize(NamedTuple):
    """The rows of a layer's change, its columns (in x kernel), and its rank."""

    rows: int
    columns: int
    rank: int

    @property
    def elements(self) -> int:
        """The numbers of both factors."""
        return self.rank * (self.rows + self.columns)


def lora_size(shapes: Mapping[str, Shape]) -> LoraSize | None:
    """The size of a layer's LoRA by the shapes of its tensors, `None` if it is no such layer.

    Raises ValueError for shapes that do not belong together.
    """
    if math.prod(shapes.get("alpha", ())) != 1:
        raise ValueError("the alpha is no single number")
    if any(0 in shape for shape in shapes.values()):
        raise ValueError("a tensor has no numbers")
    if len({_change(role) for role in shapes} - {None}) > 1:
        raise ValueError("two kinds of changes are those of one layer")
    if "diff:diff" in shapes:
        whole = shapes["diff:diff"]
        if len(whole) < 2:  # noqa: PLR2004 - a vector is no matrix
            return None
        rows, columns = whole[0], math.prod(whole[1:])
        return LoraSize(rows, columns, min(rows, columns))
    if "mid" in shapes:
        if not {"up", "down"} <= shapes.keys():
            raise ValueError("a factor is missing")
        rows, down, mid = shapes["up"][0], shapes["down"], shapes["mid"]
        if len(mid) != _TUCKER_DIMENSIONS or mid[0] != shapes["up"][1] or mid[1] != down[0]:
            raise ValueError("the Tucker factors do not agree")
        return LoraSize(rows, down[1] * math.prod(mid[2:]), mid[0])
    if any(role.startswith("loha:") for role in shapes):
        halves = [_loha_half(shapes, number) for number in "12"]
        if halves[0][:2] != halves[1][:2]:
            raise ValueError("the halves differ in size")
        rows, columns = halves[0][:2]
        return LoraSize(rows, columns, min(rows, columns, halves[0].rank * halves[1].rank))
    if any(role.startswith("lokr:") for role in shapes):
        first, second = (_lokr_half(shapes, number) for number in "12")
        rows, columns = first.rows * second.rows, first.columns * second.columns
        return LoraSize(rows, columns, min(rows, columns, first.rank * second.rank))
    return None


def _change(role: str) -> str | None:
    """The kind of change of the layer's matrix that a tensor belongs to, if it is of one."""
    kind, _, rest = role.partition(":")
    if kind in {"down", "up", "mid"}:
        return "lora"
    return kind if kind in {"loha", "lokr"} or rest == "diff" else None


def _loha_half(shapes: Mapping[str, Shape], number: str) -> LoraSize:
    left, right = (shapes.get(f"loha:hada_w{number}_{end}", ()) for end in "ab")
    return _product(left, right, shapes.get(f"loha:hada_t{number}"))


def _lokr_half(shapes: Mapping[str, Shape], number: str) -> LoraSize:
    if whole := shapes.get(f"lokr:lokr_w{number}"):
        if len(whole) < 2:  # noqa: PLR2004 - a vector is no matrix
            raise ValueError("a factor is no matrix")
        rows, columns = whole[0], math.prod(whole[1:])
        return LoraSize(rows, columns, min(rows, columns))
    left, right = (shapes.get(f"lokr:lokr_w{number}_{end}", ()) for end in "ab")
    return _product(left, right, shapes.get(f"lokr:lokr_t{number}"))


def _product(left: Shape, right: Shape, tucker: Shape | None) -> LoraSize:
    """The size of the product of two factors, of which both are (rank, …) beside Tucker's."""
    if len(left) < 2 or len(right) < 2:  # noqa: PLR2004 - a missing factor, or no matrix
        raise ValueError("a factor is missing, or is no matrix")
    if tucker is None:
        if left[1] != right[0]:
            raise ValueError("the ranks of two factors do not agree")
        return LoraSize(left[0], math.prod(right[1:]), right[0])
    if len(tucker) != _TUCKER_DIMENSIONS or tucker[:2] != (left[0], right[0]):
        raise ValueError("the Tucker factors do not agree")
    return LoraSize(left[1], right[1] * math.prod(tucker[2:]), left[0])
