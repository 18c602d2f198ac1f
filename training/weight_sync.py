"""Averages the weights of several training processes at a fixed interval.

On a busy machine two processes of one thread each are faster than one of two threads, which waits
for the slower thread at every operation (local SGD: Stich, 2019, "Local SGD converges fast").
"""

import time
from pathlib import Path
from typing import Final

import torch
from torch import nn

from training.files import load_state, save_state

INTERVAL: Final = 15.0  # seconds between averagings, by the machine's monotonic clock
PEER_TIMEOUT: Final = 3.0  # seconds to wait for another process's weights


class WeightSync:
    """Process number `worker` of `workers`, which exchange weights through files in `folder`."""

    def __init__(self, folder: Path, worker: int, workers: int) -> None:
        self._folder, self._worker, self._workers = folder, worker, workers
        self._last = self._round()

    def average(self, model: nn.Module) -> None:
        """Once per interval, take the mean of the weights of all processes that respond in time."""
        if self._workers == 1 or self._round() == self._last:
            return
        self._last = self._round()
        state = {"round": self._last, "model": model.state_dict()}
        save_state(self._path(self._worker), state)
        others = [number for number in range(self._workers) if number != self._worker]
        received = [weights for number in others if (weights := self._wait_for(number)) is not None]
        with torch.no_grad():
            for name, own in model.state_dict().items():
                if own.is_floating_point():
                    theirs = [weights[name].to(own.device) for weights in received]
                    own.copy_(torch.stack([own, *theirs]).mean(0))

    def _wait_for(self, number: int) -> dict[str, torch.Tensor] | None:
        deadline = time.monotonic() + PEER_TIMEOUT
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
