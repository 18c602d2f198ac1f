"""Choose the batch size: the fastest one that fits into memory.

Images share a batch only if that does not change them.
"""

from collections.abc import Callable

from t2i_cli.backends.local.device import Device
from t2i_cli.events import Notice, OnEvent

INDEPENDENT_PIPELINES = frozenset(
    {
        "AuraFlowPipeline",
        "BriaPipeline",
        "ChromaPipeline",
        "Flux2KleinPipeline",
        "FluxKontextPipeline",
        "FluxPipeline",
        "HiDreamImagePipeline",
        "HunyuanDiTPipeline",
        "LatentConsistencyModelPipeline",
        "Lumina2Pipeline",
        "PixArtAlphaPipeline",
        "PixArtSigmaPipeline",
        "QwenImagePipeline",
        "SanaPipeline",
        "SanaSprintPipeline",
        "StableDiffusion3Pipeline",
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
    }
)
"""diffusers' pipelines whose images do not depend on the other images of their batch.

Other pipelines pad the shorter prompts of a batch and attend to the padding, or have a language
model rewrite all prompts at once. tests/test_local_families.py tests each of these; a pipeline
without that test is not listed.
"""

START_SIZE = 2
"""Images of the first batch on a CPU: it warms up as well as a single image would."""
GPU_START_SIZE = 4
"""The same on a GPU, where it takes hardly longer than one image: starting kernels bounds both."""
MAX_SIZE = 32
"""Maximum images per batch; no device gets faster with more."""
_MIN_SPEEDUP = 1.04
"""Minimum speed-up, as a ratio, for a larger size to be preferred: less is noise."""
_MIN_SAMPLES = 2
"""Batches measured of each of two sizes before the larger one is rejected."""


def are_independent(cls: type) -> bool:
    """Whether images of a pipeline class may share a batch."""
    return is_independent_class(cls.__name__, cls.__module__)


def is_independent_class(name: str, module: str) -> bool:
    """Whether images of the pipeline class of that name and module may share a batch."""
    return name in INDEPENDENT_PIPELINES and module.startswith("diffusers.")


def dependence_reason(cls: type) -> str:
    """The message that says why images of a pipeline class do not share a batch."""
    return class_dependence_reason(cls.__name__)


def class_dependence_reason(name: str) -> str:
    """The message that says why images of the pipeline class of that name do not share a batch."""
    return f"Images of a {name} may change each other in a pass, so each is made alone."


def note_dependence(asked: int | None, cls: type, on_event: OnEvent) -> None:
    """Emit a notice if several images a pass were asked for, and the class makes one."""
    if (asked or 1) > 1 and not are_independent(cls):
        on_event(Notice(message=dependence_reason(cls)))


def make_tuner(
    asked: int | None, cls: type, device: Device, most: Callable[[], int]
) -> "BatchSizeTuner":
    """The tuner for a pipeline class on a device; `most` is how many images the memory takes."""
    fixed = asked if are_independent(cls) else 1
    start = GPU_START_SIZE if device.own_memory else START_SIZE
    return BatchSizeTuner(fixed, fixed or most(), start)


class BatchSizeTuner:
    """The batch size: `fixed`, or the fastest by measurement, at most `limit`.

    The search begins with `start` images. It doubles them as long as that gives more images per
    second, and if not even the first doubling does, halves them as long as that gives no fewer.
    Other programs can only slow a batch down, so a size
    is rated by its fastest batch. The first batch is a warm-up and is not counted.
    """

    def __init__(self, fixed: int | None, limit: int = MAX_SIZE, start: int = START_SIZE) -> None:
        self._limit = fixed or max(1, min(limit, MAX_SIZE))
        self._next = fixed or min(start, self._limit)
        self._settled = fixed is not None or self._limit == 1
        self._warmed_up = False
        self._rates: dict[int, list[float]] = {}

    def next_size(self, left: int, limit: int | None) -> int:
        """The size of the next batch, with `left` images to go and at most `limit`, if set."""
        return min(self._next, left, limit or left)

    def record(self, size: int, seconds: float) -> None:
        """Record that a batch of this size took `seconds`."""
        if self._settled or size != self._next:
            return
        if not self._warmed_up:
            self._warmed_up = True
            return
        self._rates.setdefault(size, []).append(size / max(seconds, 1e-9))
        best = self._best()
        if 2 * best <= self._limit and (size_to_measure := self._size_to_measure(best)):
            self._next = size_to_measure
        elif best == min(self._rates) > 1:
            self._next = best // 2
        else:
            self._next, self._settled = best, True

    def _size_to_measure(self, best: int) -> int | None:
        """The size to measure before twice the best size is rejected; `None` if it is rejected."""
        larger = 2 * best
        if larger not in self._rates:
            return larger
        return next(
            (size for size in (best, larger) if len(self._rates[size]) < _MIN_SAMPLES), None
        )

    def _best(self) -> int:
        """The smallest size that no larger one beats by the minimum speed-up."""
        best = 0
        for size in sorted(self._rates):
            if not best or max(self._rates[size]) >= _MIN_SPEEDUP * max(self._rates[best]):
                best = size
        return best
