"""Whether a denoiser's calls are compiled: by the user's choice, measured times, and work left."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from t2i_cli.backends.local import compilation
from t2i_cli.backends.local.call_signature import FlatCall
from t2i_cli.backends.local.compilation import CompiledForward
from t2i_cli.backends.local.device import Device, is_out_of_memory
from t2i_cli.backends.local.engine_measurements import (
    EngineMeasurement,
    is_close,
    lookup_measurement,
    measure_seconds,
    measurement_key,
    remember_measurement,
    synchronize,
)
from t2i_cli.backends.local.options import CompileMode
from t2i_cli.errors import error_reason
from t2i_cli.models.libraries import LibraryObject

LEAST_COMPILE_SPEEDUP = 1.02
"""How many times as fast a compiled call must be for it to be kept: less is noise."""


class CompileChoice:
    """Compiles a denoiser's calls where that is asked for or pays, and is measured to be faster.

    `parts` name what a measurement depends on; `tell` gets the sentences for the user. Measured
    once for each shape of the inputs, on the call in hand: eager and compiled are timed, and must
    agree. A failure is told once, and the call in hand is computed eagerly.
    """

    def __init__(
        self,
        network: LibraryObject,
        device: Device,
        parts: dict[str, str],
        tell: Callable[[str], None],
    ) -> None:
        self.dropped = False
        self._network = network
        self._device = device
        self._parts = parts
        self._tell = tell
        self._regional = compilation.is_regional(network)
        self._verdicts: dict[str, bool] = {}
        self._compiled: CompiledForward | None = None
        self._forward: LibraryObject = None
        self._mode: CompileMode = "off"
        self._seconds_left = self._gain = 0.0

    def begin_pass(
        self, mode: CompileMode, forward: Callable[..., Any], seconds_left: float, gain: float
    ) -> bool:
        """Prepare for a pass; returns whether any call of it might be compiled.

        `seconds_left` is the denoising time of the images that are still expected, `gain` the part
        of it that compiling is expected to save where that was never measured.
        """
        if forward != self._forward:
            self._compiled = None
        self._mode, self._forward = mode, forward
        self._seconds_left, self._gain = seconds_left, gain
        if self.dropped or mode == "off":
            return False
        if mode == "auto" and not (seconds_left or any(self._verdicts.values())):
            return False
        if compilation.has_compiler(self._device):
            return True
        if mode == "on":
            self.drop("there is no compiler: torch needs g++ or clang++, on a GPU also Triton")
        return False

    def compute(self, call: FlatCall) -> tuple[bool, Any]:
        """Whether the call was computed compiled, and its output if so (or if it was measured)."""
        shapes = call.shapes()
        verdict = self._verdicts.get(shapes)
        if self.dropped or verdict is False:
            return False, None
        args, kwargs = call.rebuild(call.leaves)
        if verdict is None:
            key = measurement_key(self._parts | {"shapes": shapes})
            known = lookup_measurement(key)
            if known is not None and not known.is_faster(LEAST_COMPILE_SPEEDUP):
                self._verdicts[shapes] = False
                if self._mode == "on":
                    self._tell("Compiled code was measured here before, and is not faster.")
                return False, None
            if not self._is_worth_it(known):
                return False, None
            return self._compile(key, shapes, known, args, kwargs)
        if self._compiled is None:  # hooks were added or removed
            self._compiled = CompiledForward(self._network, self._forward)
        try:
            return True, self._compiled(*args, **kwargs)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.drop(error_reason(error))
        return False, None

    def drop(self, reason: str) -> None:
        """Compile no more; tells the reason, once."""
        if not self.dropped:
            self.dropped = True
            self._compiled = None
            self._tell(f"Compiling is left out: {reason.rstrip('.')}.")

    def _is_worth_it(self, known: EngineMeasurement | None) -> bool:
        """Whether a call of these shapes is to be compiled; `known` is a faster measurement."""
        if self._mode == "on":
            return True
        gain = known.gain if known else self._gain
        cost = known.preparation if known else compilation.expected_seconds(regional=self._regional)
        return compilation.pays_off(self._seconds_left, gain, cost)

    def _compile(
        self,
        key: str,
        shapes: str,
        known: EngineMeasurement | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[bool, Any]:
        """Compile the call in hand; unless it is known to be faster, compare it with eager."""
        forward, wait = self._forward, partial(synchronize, self._device)
        try:
            compilation.keep_compiled_code(self._device)
            compiled = self._compiled or CompiledForward(self._network, forward)
            wait()
            started = time.perf_counter()
            output = compiled(*args, **kwargs)
            wait()
            preparation = time.perf_counter() - started
            if known is None:
                expected = forward(*args, **kwargs)
                if not is_close(output, expected):
                    raise RuntimeError("the compiled network's output differed")
                measured = EngineMeasurement(
                    eager=measure_seconds(partial(forward, *args, **kwargs), wait),
                    other=measure_seconds(partial(compiled, *args, **kwargs), wait),
                    preparation=preparation,
                )
            else:
                measured = EngineMeasurement(
                    eager=known.eager, other=known.other, preparation=preparation
                )
        except Exception as error:  # noqa: BLE001 - an optimisation may fail in any way
            failure = error_reason(error)
        else:
            remember_measurement(key, measured)
            self._verdicts[shapes] = measured.is_faster(LEAST_COMPILE_SPEEDUP)
            if self._verdicts[shapes]:
                self._compiled = compiled
                return True, output
            self._tell(
                f"Compiled code is not faster here ({measured.other * 1000:.0f} ms a step, "
                f"{measured.eager * 1000:.0f} ms without), so it is not used."
            )
            return False, None
        # Outside the except block, whose traceback keeps the failed call's tensors alive.
        self.drop(failure)
        return False, None
