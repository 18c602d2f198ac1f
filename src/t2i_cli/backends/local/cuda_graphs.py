"""CUDA graphs: a denoiser's forward is recorded for each signature of its call, and replayed.

A UNet at batch size 1 is bound by the launches of its kernels, which a replay does all at once. The
arithmetic is the same: it is checked, with other inputs than those recorded, at the first replay.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any, Protocol

from t2i_cli.backends.local.call_signature import (
    FlatCall,
    flatten_call,
    network_state,
    timestep_as_tensor,
)
from t2i_cli.backends.local.device import Device, clear_cache, is_out_of_memory
from t2i_cli.errors import error_reason
from t2i_cli.models.libraries import LibraryObject

MIN_STEPS = 8
"""Steps of an image from which on recording repays itself: it costs about four steps."""
MAX_RECORDINGS = 4
"""Recordings that are kept, the least recently used goes first; guidance on and off take two."""
_MAX_RECORDED_IN_A_PASS = 2 * MAX_RECORDINGS
_WARM_UPS = 2


def records_passes(device: Device, steps: int) -> bool:
    """Whether the calls of a pass of so many steps are worth recording on this device."""
    return device.kind == "cuda" and steps >= MIN_STEPS


def graph_memory(denoise_bytes: int) -> int:
    """Bytes that recordings hold between passes, if one forward needs `denoise_bytes`.

    The memory of a forward is set aside for its replays; all recordings share it. Inputs and
    outputs are small beside it. It is not there for the decode, but is given back if that runs out.
    """
    return denoise_bytes


class Recording(Protocol):
    """A recorded call: `output` holds the tensors that every replay writes to."""

    output: Any

    def replay(self) -> None:
        """Run the recorded kernels again on what the buffers hold now."""

    def release(self) -> None:
        """Give back the recording's memory."""


class Recorder(Protocol):
    """What records calls: CUDA, or in tests something that runs them again."""

    def buffer(self, tensor: LibraryObject) -> LibraryObject:
        """A tensor on the device with the shape, dtype, strides and values of `tensor`."""

    def record(self, call: Callable[[], Any]) -> Recording:
        """Warm the call up, and record it. Raises what torch raises."""


_RECORDING = Lock()
"""Held while something is recorded: all recorders of a device share a stream."""


@cache
def _recording_stream(device: str) -> LibraryObject:
    """The stream that calls are recorded on: cuBLAS keeps a workspace for each for good."""
    import torch

    with torch.cuda.device(device):
        return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CudaRecorder:
    """Records with `torch.cuda.graph`, on a stream of its own; recordings share their memory."""

    def __init__(self, device: str) -> None:
        import torch

        self._device = torch.device(device)
        self._stream = _recording_stream(device)
        with torch.cuda.device(self._device):
            self._pool = torch.cuda.graph_pool_handle()

    def buffer(self, tensor: LibraryObject) -> LibraryObject:
        """A copy on the device."""
        import torch

        # An expanded tensor is copied whole: its elements would share their places.
        strides = tensor.stride() if 0 not in tensor.stride() else tensor.contiguous().stride()
        kept = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=self._device)
        return kept.copy_(tensor)

    def record(self, call: Callable[[], Any]) -> Recording:
        """Warm the call up on the stream, and capture it there."""
        import torch

        with _RECORDING, torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    call()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: a thread that saves an image may use CUDA meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                output = call()
        return _CudaRecording(graph, output, self._device)


class _CudaRecording:
    def __init__(self, graph: LibraryObject, output: Any, device: LibraryObject) -> None:  # noqa: ANN401
        self.output = output
        self._graph = graph
        self._device = device

    def replay(self) -> None:
        import torch

        with torch.cuda.device(self._device):
            self._graph.replay()

    def release(self) -> None:
        import torch

        torch.cuda.synchronize(self._device)
        self.output = None
        self._graph.reset()


@dataclass
class _Recorded:
    """A recording with its input buffers; `checked` once a replay was equal to eager."""

    recording: Recording
    buffers: list[Any]
    checked: bool = False


class GraphedForward:
    """Stands in for a denoiser's `forward`: replays recorded calls, and computes others eagerly.

    A failure of a recording loses no step: the same call is computed eagerly, the reason is told
    once by `on_dropped`, and `dropped` is then true for good.
    """

    def __init__(
        self, device: Device, recorder: Recorder, on_dropped: Callable[[str], None]
    ) -> None:
        self.dropped = False
        self.replayed = False
        self._device = device
        self._recorder = recorder
        self._on_dropped = on_dropped
        self._forward: LibraryObject = None
        self._state = 0
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._seen: set[Hashable] = set()
        self._refused: set[Hashable] = set()
        self._recorded_in_pass = 0

    def begin_pass(self, network: LibraryObject, forward: Callable[..., Any]) -> None:
        """Prepare for a pass of `forward`, the network's own; forget what no longer holds."""
        state = network_state(network)
        if state != self._state or forward != self._forward:
            self.release()
            self._refused.clear()
        self._state, self._forward = state, forward
        self._seen.clear()
        self._recorded_in_pass = 0
        self.replayed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the network's own
        """The output of the network's forward, in tensors that no later call overwrites."""
        if self.dropped:
            return self._forward(*args, **kwargs)
        moved, named = timestep_as_tensor(self._forward, args, kwargs, self._device.name)
        call = flatten_call(moved, named)
        key = call.signature()
        if key is None or key in self._refused:
            return self._eager(call)
        if key in self._recorded:
            return self._replay(key, call)
        output = self._eager(call)
        # An argument that differs from step to step is not recorded anew for each.
        if key in self._seen:
            self._record(key, call)
        self._seen.add(key)
        return output

    def has_checked(self, call: FlatCall) -> bool:
        """Whether the call is recorded, and was found equal to eager."""
        found = self._recorded.get(call.signature())
        return found is not None and found.checked

    def release(self) -> bool:
        """Give back all recordings; returns whether there were any."""
        found, self._recorded = list(self._recorded.values()), OrderedDict()
        for each in found:
            try:
                each.recording.release()
            except Exception as error:  # noqa: BLE001 - a device in error has nothing to release
                self._tell_dropped(error_reason(error))
        return bool(found)

    def drop(self, reason: str) -> None:
        """Compute eagerly for good; tells the reason, once."""
        self._tell_dropped(reason)
        self.release()

    def _tell_dropped(self, reason: str) -> None:
        if not self.dropped:
            self.dropped = True
            self._on_dropped(reason)

    def _eager(self, call: FlatCall) -> Any:  # noqa: ANN401
        """Compute the call; if memory runs out that recordings hold, without them once more."""
        args, kwargs = call.rebuild(call.leaves)
        try:
            return self._forward(*args, **kwargs)
        except Exception as error:
            if not is_out_of_memory(error) or not self._recorded:
                raise
        # Outside the except block, whose traceback keeps the failed call's tensors alive.
        self.drop("the memory is needed")
        clear_cache(self._device)
        return self._forward(*args, **kwargs)

    def _record(self, key: Hashable, call: FlatCall) -> None:
        """Record the call; what fails is told, and changes nothing else."""
        import torch

        self._recorded_in_pass += 1
        if self._recorded_in_pass > _MAX_RECORDED_IN_A_PASS:
            self.drop("its arguments change from step to step")
            return
        while len(self._recorded) >= MAX_RECORDINGS:
            _, oldest = self._recorded.popitem(last=False)
            oldest.recording.release()
        forward = self._forward
        try:
            leaves = [
                self._recorder.buffer(leaf) if isinstance(leaf, torch.Tensor) else leaf
                for leaf in call.leaves
            ]
            args, kwargs = call.rebuild(leaves)
            recording = self._recorder.record(lambda: forward(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - an optimisation may fail in any way
            failure = error_reason(error)
            out_of_memory = is_out_of_memory(error)
        else:
            self._recorded[key] = _Recorded(recording, leaves)
            return
        # Outside the except block, whose traceback keeps the failed call's tensors alive.
        if not out_of_memory:
            self.drop(failure)
            return
        self._refused.add(key)
        self.release()
        clear_cache(self._device)

    def _replay(self, key: Hashable, call: FlatCall) -> Any:  # noqa: ANN401
        """Replay a recording; the first time with other inputs it must equal the eager output."""
        import torch

        found = self._recorded[key]
        self._recorded.move_to_end(key)
        expected = None if found.checked else self._eager(call)
        if expected is not None and key not in self._recorded:
            return expected
        try:
            for buffer, leaf in zip(found.buffers, call.leaves, strict=True):
                if isinstance(leaf, torch.Tensor):
                    buffer.copy_(leaf)
            found.recording.replay()
            output = _copied(found.recording.output)
            equal = expected is None or _equal_bits(output, expected)
        except Exception as error:  # noqa: BLE001 - an optimisation may fail in any way
            failure = error_reason(error)
        else:
            if equal:
                found.checked = True
                self.replayed = True
                return output
            failure = "its output differed"
        self.drop(failure)
        clear_cache(self._device)
        return self._eager(call) if expected is None else expected


def _copied(output: Any) -> Any:  # noqa: ANN401
    """The output with copies of its tensors, which the next replay does not overwrite."""
    import torch
    from torch.utils import _pytree as pytree

    return pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, output
    )


def _equal_bits(output: Any, expected: Any) -> bool:  # noqa: ANN401
    """Whether two outputs have equal shapes, dtypes and bits, those of NaN as well."""
    import torch
    from torch.utils import _pytree as pytree

    ones, one_spec = pytree.tree_flatten(output)
    others, other_spec = pytree.tree_flatten(expected)
    if one_spec != other_spec:
        return False
    for one, other in zip(ones, others, strict=True):
        if not isinstance(one, torch.Tensor):
            if one != other:
                return False
        elif one.shape != other.shape or one.dtype != other.dtype:
            return False
        elif not torch.equal(_bytes(one), _bytes(other)):
            return False
    return True


def _bytes(tensor: LibraryObject) -> LibraryObject:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)
