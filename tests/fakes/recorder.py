"""A recorder of calls that needs no GPU: it traces a call's operations and runs them again.

As a CUDA graph it knows only tensors: Python code, hooks and numbers are as they were when it was
recorded; its outputs are the same tensors each time; and weights that have moved since give NaN,
where a GPU would read memory that is no longer theirs. It fails when it is told to.
"""

from collections.abc import Callable, Iterable
from typing import Any

from t2i_cli.models.libraries import LibraryObject


class FakeRecorder:
    """Counts what is done, and fails at chosen recordings and replays (from 1)."""

    def __init__(self, network: Callable[[], LibraryObject] | None = None) -> None:
        self.network = network
        self.recorded = self.replayed = self.released = 0
        self.fail_recording: frozenset[int] = frozenset()
        self.fail_replay: frozenset[int] = frozenset()
        self.wrong_replay: frozenset[int] = frozenset()
        self.error: Callable[[], Exception] = lambda: RuntimeError("operation not permitted")
        self._buffers: list[LibraryObject] = []

    @property
    def held(self) -> int:
        """Recordings that were not given back."""
        return self.recorded - self.released

    def fail(
        self,
        *,
        recording: Iterable[int] = (),
        replay: Iterable[int] = (),
        wrong: Iterable[int] = (),
        error: Callable[[], Exception] | None = None,
    ) -> None:
        """Fail at these recordings and replays; `wrong` replays give other bits."""
        self.fail_recording, self.fail_replay = frozenset(recording), frozenset(replay)
        self.wrong_replay = frozenset(wrong)
        self.error = error or self.error

    def buffer(self, tensor: LibraryObject) -> LibraryObject:
        """A copy, which the next recording reads."""
        kept = tensor.detach().clone()
        self._buffers.append(kept)
        return kept

    def record(self, call: Callable[[], Any]) -> "FakeRecording":
        """Trace the call."""
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.utils import _pytree as pytree

        buffers, self._buffers = self._buffers, []
        attempt = self.recorded + 1
        if attempt in self.fail_recording:
            self.fail_recording -= {attempt}
            raise self.error()
        output = call()
        leaves, spec = pytree.tree_flatten(output)

        # The tracer knows the buffers as the objects they are, so that the call need not take them.
        traced = make_fx(lambda *_: pytree.tree_leaves(call()))(*buffers)
        self.recorded += 1
        return FakeRecording(self, traced, buffers, [leaf.clone() for leaf in leaves], spec)

    def weights(self) -> list[tuple[int, tuple[int, ...]]]:
        """Where the network's weights lie."""
        network = self.network() if self.network else None
        weights = [] if network is None else list(network.parameters())
        return [(weight.data_ptr(), weight.stride()) for weight in weights]


class FakeRecording:
    """The traced operations of one call."""

    def __init__(
        self,
        recorder: FakeRecorder,
        traced: LibraryObject,
        buffers: list[LibraryObject],
        outputs: list[LibraryObject],
        spec: LibraryObject,
    ) -> None:
        from torch.utils import _pytree as pytree

        self.output: Any = pytree.tree_unflatten(outputs, spec)
        self._recorder = recorder
        self._traced = traced
        self._buffers = buffers
        self._outputs = outputs
        self._weights = recorder.weights()

    def replay(self) -> None:
        """Run the operations on what the buffers hold now, into the same outputs."""
        recorder = self._recorder
        recorder.replayed += 1
        assert self.output is not None, "a recording was replayed after its release"
        if recorder.replayed in recorder.fail_replay:
            raise recorder.error()
        found = self._traced(*self._buffers)
        for output, value in zip(self._outputs, found, strict=True):
            output.copy_(value)
            if self._weights != recorder.weights():
                output.fill_(float("nan"))
            if recorder.replayed in recorder.wrong_replay:
                output[(0,) * output.ndim] += 1e-3

    def release(self) -> None:
        """Forget the recording."""
        assert self.output is not None, "a recording was released twice"
        self._recorder.released += 1
        self.output = None
