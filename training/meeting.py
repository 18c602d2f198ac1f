"""Lets training processes share their progress: every so often they take the mean of their weights.

Two processes of one thread each stand a busy machine better than one of two threads, which waits
for the slower at every operation (local SGD: Stich, 2019, "Local SGD converges fast").
"""

import time
from pathlib import Path
from typing import Final

import torch
from torch import nn

from training.files import load_state, save_state

INTERVAL: Final = 15.0  # seconds between meetings, by the machine's common clock
PATIENCE: Final = 3.0  # seconds that one waits for another


class Meeting:
    """What one of `workers` processes, by its number, needs to meet the others in a folder."""

    def __init__(self, folder: Path, worker: int, workers: int) -> None:
        self._folder, self._worker, self._workers = folder, worker, workers
        self._last = self._round()

    def join(self, model: nn.Module) -> None:
        """When a new interval has begun, take the mean of all processes' weights that come."""
        if self._workers == 1 or self._round() == self._last:
            return
        self._last = self._round()
        state = {"round": self._last, "model": model.state_dict()}
        save_state(self._path(self._worker), state)
        others = [number for number in range(self._workers) if number != self._worker]
        came = [weights for number in others if (weights := self._await(number)) is not None]
        with torch.no_grad():
            for name, own in model.state_dict().items():
                if own.is_floating_point():
                    theirs = [weights[name].to(own.device) for weights in came]
                    own.copy_(torch.stack([own, *theirs]).mean(0))

    def _await(self, number: int) -> dict[str, torch.Tensor] | None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            state = load_state(self._path(number))
            if state and state["round"] == self._last:
                weights: dict[str, torch.Tensor] = state["model"]
                return weights
            time.sleep(0.1)
        return None

    def _path(self, number: int) -> Path:
        return self._folder / f"worker-{number}.pt"

    @staticmethod
    def _round() -> int:
        return int(time.monotonic() / INTERVAL)
