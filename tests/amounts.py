"""How much a test tries: a sample in every run, and all of it in `make full`."""

from collections.abc import Iterable
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet


def sampled(values: Iterable[Any], few: int = 4) -> list[Any]:
    """Parameters of which all but `few`, spread from the first to the last, are marked `full`.

    An entry that is a tuple is the values of several parameters.
    """
    every = list(values)
    last = max(1, min(few, len(every)) - 1)
    chosen = {round(n * (len(every) - 1) / last) for n in range(min(few, len(every)))}
    return [
        value if number in chosen else full(*value if isinstance(value, tuple) else (value,))
        for number, value in enumerate(every)
    ]


def full(*values: object) -> ParameterSet:
    """Parameters that `make full` alone tries."""
    return pytest.param(*values, marks=pytest.mark.full)
