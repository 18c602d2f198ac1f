"""How many images one pass makes: as many as memory takes, if the device gains by them.

Only images that do not change each other share a pass.
"""

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
"""diffusers' pipelines whose images are, with others in a pass, what they are alone.

Others pad the shorter prompts of a pass and read the padding, or have a language model rewrite them
all at once. tests/test_local_families.py shows it for each of these; what it does not show stays
out.
"""

START_SIZE = 2
"""Images of the first pass: what one alone would teach is learnt from two as well."""
MAX_SIZE = 32
"""Images of a pass at most; no device gains more from more."""
_GAIN = 1.04
"""A size has to be quicker by this to be preferred: less is noise."""
_LOOKS = 2
"""Passes that two sizes are compared by before the larger is given up."""


def are_independent(cls: type) -> bool:
    """Whether the images of a pipeline of this class may share a pass."""
    return cls.__name__ in INDEPENDENT_PIPELINES and cls.__module__.startswith("diffusers.")


def dependence_reason(cls: type) -> str:
    """The sentence that tells why images of a pipeline of this class share no pass."""
    return f"Images of a {cls.__name__} may change each other in a pass, so each is made alone."


class BatchSizeTuner:
    """The size of a pass: `wanted`, or found by measuring, at most `most`.

    The search doubles the size as long as that makes more images a second, and tries one image
    alone where not even the first doubling does. Other programs can only slow a pass down, so a
    size is known by its quickest one. The first pass warms up and is not counted.
    """

    def __init__(self, wanted: int | None, most: int = MAX_SIZE) -> None:
        self._most = wanted or max(1, min(most, MAX_SIZE))
        self._next = wanted or min(START_SIZE, self._most)
        self._found = wanted is not None or self._most == 1
        self._warm = False
        self._rates: dict[int, list[float]] = {}

    def next_size(self, left: int, limit: int | None) -> int:
        """The size of the next pass, of `left` images, at most `limit` since memory ran out."""
        return min(self._next, left, limit or left)

    def record(self, size: int, seconds: float) -> None:
        """Learn that a pass of this size took so long."""
        if self._found or size != self._next:
            return
        if not self._warm:
            self._warm = True
            return
        self._rates.setdefault(size, []).append(size / max(seconds, 1e-9))
        best = self._best()
        if 2 * best <= self._most and (unsure := self._unsure(best)):
            self._next = unsure
        elif best == START_SIZE and 1 not in self._rates:
            self._next = 1
        else:
            self._next, self._found = best, True

    def _unsure(self, best: int) -> int | None:
        """The size to look at again before the double of the best is given up."""
        larger = 2 * best
        if larger not in self._rates:
            return larger
        return next((size for size in (best, larger) if len(self._rates[size]) < _LOOKS), None)

    def _best(self) -> int:
        """The smallest size that no larger one clearly beats."""
        best = 0
        for size in sorted(self._rates):
            if not best or max(self._rates[size]) >= _GAIN * max(self._rates[best]):
                best = size
        return best
