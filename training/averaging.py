"""Averaged weights, and what a checkpoint holds."""

import copy
from typing import Any

import torch
from torch import nn

from training.untyped import Untyped


class Average:
    """An exponential moving average of weights, which follows more closely at first."""

    def __init__(self, module: nn.Module, keep: float) -> None:
        self.module: Untyped = copy.deepcopy(module).requires_grad_(False).eval()
        self._keep = keep

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module's weights."""
        keep = min(self._keep, (step + 1) / (step + 50))
        for kept, new in zip(self.module.parameters(), module.parameters(), strict=True):
            kept.lerp_(new, 1 - keep)


def training_state(
    model: nn.Module, average: Average, optimizer: torch.optim.Optimizer, step: int, elapsed: float
) -> dict[str, Any]:
    """All that a run needs to go on where it stopped; `elapsed` in seconds."""
    return {
        "model": model.state_dict(),
        "average": average.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "elapsed": elapsed,
    }
