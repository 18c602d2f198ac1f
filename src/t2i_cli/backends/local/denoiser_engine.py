"""How a denoiser's forward is computed: eagerly, by CUDA graphs, or compiled; with which attention.

`DenoiserEngine` is all that the rest of the backend knows of it: it takes the place of the
denoiser's `forward` while a pass runs, and says afterwards what was used.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, Protocol

from t2i_cli.backends.local import attention_backend, compilation, cuda_graphs
from t2i_cli.backends.local.call_signature import FlatCall, flatten_call
from t2i_cli.backends.local.compile_choice import LEAST_COMPILE_SPEEDUP, CompileChoice
from t2i_cli.backends.local.cuda_graphs import CudaRecorder, GraphedForward, Recorder
from t2i_cli.backends.local.device import Device, is_out_of_memory
from t2i_cli.backends.local.engine_measurements import (
    FAILED,
    EngineMeasurement,
    has_faster,
    is_close,
    lookup_measurement,
    measure_seconds,
    measurement_key,
    remember_measurement,
    synchronize,
)
from t2i_cli.backends.local.engine_work import EngineWork
from t2i_cli.backends.local.options import CompileMode
from t2i_cli.events import Notice, OnEvent
from t2i_cli.models.libraries import LibraryObject

EAGER, CUDA_GRAPH, COMPILED = "eager", "cuda-graph", "compiled"
_LEAST_SPEEDUP = 1.05
"""How many times as fast another attention, or a transformer's graph, must be to be used."""
_LAUNCH_BOUND_SECONDS = 0.04
"""Longer forwards are bound by their arithmetic, and not by the launches of some 2,000 kernels."""
_RESIDENT = {"model-offload", "group-offload"}


class EngineOwner(Protocol):
    """What an engine needs to know of a loaded pipeline."""

    pipe: LibraryObject
    device: Device
    dtype: str
    measures: list[str]
    on_event: OnEvent


class DenoiserEngine:
    """The engine of one loaded pipeline; `used` says how the last pass was computed.

    `graphs_fit` is whether the plan has memory for the recordings of CUDA graphs.
    """

    def __init__(self, loaded: EngineOwner) -> None:
        self.compile_mode: CompileMode = "auto"
        self.graphs_fit = True
        self.used = EAGER
        self._loaded = loaded
        self._network: LibraryObject = None
        self._forward: LibraryObject = None
        self._work = EngineWork(loaded.device)
        self._graphs: GraphedForward | None = None
        self._graph_verdicts: dict[str, bool] = {}
        self._choice: CompileChoice | None = None
        self._may_compile = self._may_graph = False
        self._attention_measured = False
        self._gain: bool | None = None
        self._told: set[str] = set()

    def start_group(self, images: int) -> None:
        """Say that a group of so many similar images begins."""
        self._work.start_group(images)

    @contextmanager
    def running(self, steps: int, images: int) -> Iterator[None]:
        """Compute the denoiser's calls of a pass of `images` images in the chosen way."""
        self.used = EAGER
        network = self._denoiser()
        if network is None or not self._prepare(network, steps):
            yield
            self._work.end_pass(images)
            return
        forward = self._forward
        replaced = vars(network).get("forward")

        @wraps(forward)
        def chosen(*args: LibraryObject, **kwargs: LibraryObject) -> LibraryObject:
            return self._compute(args, kwargs)

        network.forward = chosen
        try:
            yield
            self._work.end_pass(images)
        except Exception as error:
            if is_out_of_memory(error):
                self.release_memory()
            raise
        finally:
            if vars(network).get("forward") is chosen:
                del network.forward
                if replaced is not None:
                    network.forward = replaced

    def forget_network(self) -> None:
        """Record and compile anew: the network's layers, or what scales them, have changed."""
        if self._graphs is not None:
            self._graphs.release()
        self._graph_verdicts.clear()
        self._network = self._choice = self._gain = None

    def release_memory(self) -> bool:
        """Give back the memory of CUDA graphs, for good, if they hold any; returns whether."""
        if self._graphs is None or not self._graphs.release():
            return False
        self._graphs.drop("the memory is needed")
        return True

    @property
    def attention(self) -> str | None:
        """The attention that the denoiser computes with."""
        network = self._denoiser()
        return None if network is None else attention_backend.attention_name(network)

    def _denoiser(self) -> LibraryObject:
        """The network that the steps call, or `None` if the pipeline has none of diffusers'."""
        from diffusers import ModelMixin

        for name in ("unet", "transformer"):
            network = getattr(self._loaded.pipe, name, None)
            if isinstance(network, ModelMixin):
                return network
        return None

    def _prepare(self, network: LibraryObject, steps: int) -> bool:
        """Decide what a pass may use; returns whether that is anything beside eager."""
        loaded = self._loaded
        if network is not self._network:
            self._network, self._choice, self._gain = network, None, None
        self._forward, unet = network.forward, self._is_unet()
        if obstacle := _obstacle(network, loaded.measures):
            if self.compile_mode == "on":
                self._tell(f"Compiling is left out: {obstacle}.")
            if self._graphs is not None:
                self._graphs.release()
            return False
        recordable = cuda_graphs.records_passes(loaded.device, steps)
        known = self._work.seconds_per_call
        small = unet or (known is not None and known < _LAUNCH_BOUND_SECONDS)
        self._may_graph = recordable and small and self.graphs_fit
        if self._graphs is not None and not self.graphs_fit:
            self._graphs.release()
        if self._may_graph and self._graphs is None:
            self._graphs = self._new_graphs()
        self._may_graph = self._may_graph and self._graphs is not None and not self._graphs.dropped
        self._may_compile = self._begin_compiling(unet)
        if self._may_graph and self._graphs is not None:
            self._graphs.begin_pass(network, self._forward)
        measuring = self.compile_mode == "auto" and self._can_gain()
        launches = recordable and not unet
        self._work.begin_pass(measuring=measuring or launches)
        self._attention_measured |= not attention_backend.offers_flash_3(
            network, loaded.device, loaded.dtype
        )
        measures = self._work.is_measuring or not self._attention_measured
        return self._may_graph or self._may_compile or measures

    def _begin_compiling(self, unet: bool) -> bool:
        """Whether calls of this pass may be compiled."""
        # What CUDA graphs make faster is compiled only if asked for.
        if self.compile_mode == "off" or (self.compile_mode == "auto" and self._may_graph):
            return False
        if self._choice is None:
            parts = self._parts(COMPILED)
            self._choice = CompileChoice(self._network, self._loaded.device, parts, self._tell)
        gain = compilation.expected_gain(self._loaded.device, unet=unet)
        return self._choice.begin_pass(
            self.compile_mode, self._forward, self._work.seconds_left(), gain
        )

    def _can_gain(self) -> bool:
        """Whether compiling is expected to save time, or was once measured to."""
        if self._gain is None:
            device = self._loaded.device
            expected = compilation.expected_gain(device, unet=self._is_unet())
            self._gain = expected > 0 or has_faster(self._parts(COMPILED), LEAST_COMPILE_SPEEDUP)
        return self._gain

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LibraryObject:
        """One call of the denoiser, in the way that was chosen for the pass."""
        self._work.count_call()
        if not self._attention_measured:
            self._attention_measured = True
            self._measure_attention(partial(self._forward, *args, **kwargs))
        if self._may_compile and self._choice is not None:
            compiled, output = self._choice.compute(flatten_call(args, kwargs))
            if compiled:
                self.used = COMPILED
                return output
        if self._may_graph and self._graphs is not None:
            call = None if self._is_unet() else flatten_call(args, kwargs)
            if call is None or self._is_graph_faster(self._graphs, call):
                output = self._graphs(*args, **kwargs)
                if self._graphs.replayed:
                    self.used = CUDA_GRAPH
                return output
        return self._forward(*args, **kwargs)

    def _is_graph_faster(self, graphs: GraphedForward, call: FlatCall) -> bool:
        """Whether a transformer's call may be replayed: measured once it has been recorded."""
        shapes, forward = call.shapes(), self._forward
        if shapes not in self._graph_verdicts:
            key = measurement_key(self._parts(CUDA_GRAPH) | {"shapes": shapes})
            measured = lookup_measurement(key)
            if measured is None:
                if not graphs.has_checked(call):
                    return True
                args, kwargs = call.rebuild(call.leaves)
                wait = partial(synchronize, self._loaded.device)
                measured = EngineMeasurement(
                    eager=measure_seconds(partial(forward, *args, **kwargs), wait),
                    other=measure_seconds(partial(graphs, *args, **kwargs), wait),
                )
                remember_measurement(key, measured)
            self._graph_verdicts[shapes] = measured.is_faster(_LEAST_SPEEDUP)
            if not self._graph_verdicts[shapes]:
                graphs.release()
        return self._graph_verdicts[shapes]

    def _measure_attention(self, call: Callable[[], Any]) -> None:
        """Choose the faster attention, by this call or by what is remembered of an earlier one."""
        network, wait = self._network, partial(synchronize, self._loaded.device)
        key = measurement_key(self._parts(attention_backend.FLASH_3))
        measured = lookup_measurement(key)
        if measured is not None and not measured.is_faster(_LEAST_SPEEDUP):
            return
        try:
            expected = call() if measured is None else None
            eager = measure_seconds(call, wait) if measured is None else 0.0
            attention_backend.use_attention(network, attention_backend.FLASH_3)
            output = call()
            if measured is None:
                close = is_close(output, expected)
                other = measure_seconds(call, wait)
                measured = EngineMeasurement(eager=eager, other=other) if close else FAILED
                remember_measurement(key, measured)
            if measured.is_faster(_LEAST_SPEEDUP):
                return
        except Exception as error:  # noqa: BLE001 - an optimisation may fail in any way
            if not is_out_of_memory(error):
                remember_measurement(key, FAILED)
            self._tell("FlashAttention-3 cannot be used with this model; PyTorch's is used.")
        network.reset_attention_backend()

    def _new_graphs(self) -> GraphedForward | None:
        """What records CUDA graphs, or `None` if not even a stream can be had."""
        device = self._loaded.device
        try:
            recorder = new_recorder(device)
        except Exception:  # noqa: BLE001 - an optimisation may fail in any way
            self._tell_graphs("CUDA has no stream for them")
            return None
        return GraphedForward(device, recorder, self._tell_graphs)

    def _parts(self, engine: str) -> dict[str, str]:
        """What a measurement of an engine depends on, without the shapes of the inputs."""
        network = self._network
        return {
            "engine": engine,
            "model": f"{type(network).__name__}-{_config_digest(network)}",
            "dtype": self._loaded.dtype,
            **compilation.environment_parts(self._loaded.device),
        }

    def _is_unet(self) -> bool:
        return self._network is not None and self._network is getattr(
            self._loaded.pipe, "unet", None
        )

    def _tell_graphs(self, reason: str) -> None:
        self._tell(f"CUDA graphs are left out, which is slower: {reason.rstrip('.')}.")

    def _tell(self, sentence: str) -> None:
        """Tell the user a sentence, once."""
        if sentence not in self._told:
            self._told.add(sentence)
            self._loaded.on_event(Notice(message=sentence))


def new_recorder(device: Device) -> Recorder:
    """The recorder of a device. Raises what torch raises."""
    return CudaRecorder(device.name)


def _obstacle(network: LibraryObject, measures: list[str]) -> str | None:
    """Why the network can be neither recorded nor compiled, as part of a sentence, or `None`."""
    if _RESIDENT & set(measures):
        return "the model's weights are offloaded"
    if getattr(network, "is_cache_enabled", False):
        return "a step cache is on"
    if getattr(network, "hf_quantizer", None) is not None or getattr(
        network, "is_quantized", False
    ):
        return "the model is quantized"
    for module in network.modules():
        if hasattr(module, "_hf_hook") or getattr(
            getattr(module, "_diffusers_hook", None), "hooks", None
        ):
            return "hooks change the network between its layers"
    return None


def _config_digest(network: LibraryObject) -> str:
    """A hash of the network's configuration, without where it was loaded from."""
    import hashlib

    values = {name: value for name, value in dict(network.config).items() if name[0] != "_"}
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:12]
