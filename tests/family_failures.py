"""What t2i does not keep yet of its promises for text-to-image classes, with the causes.

Strict: what is mended makes its test fail until it is taken off this list.
"""

from collections.abc import Iterator, Mapping

_MULTIPLE = "its sizes are multiples of another number (models/resolution.py: _multiple)"
_OWN_SIZES = "it makes sizes of its own, told after the run (backends/local/pipeline.py)"
_ONE_GENERATOR = "one generator, not a list (backends/local/pipeline.py)"
_TOGETHER = "arguments that belong together are not set together (backends/local/pipeline.py)"
_DIFFUSERS = "without guidance, diffusers' own perturbed attention fails"
_GUESS = "a size of the network is guessed where its keys are unknown (backends/local/memory.py)"

_RUN = ("is plain's", "seed", "steps", "batch", "guidance", "schedulers", "dry run")
"""What follows from a picture that is not made."""

_FAILING: dict[str, dict[str, tuple[str, ...]]] = {
    _MULTIPLE: {
        "GlmImagePipeline": ("size",),
        "Kandinsky3Pipeline": ("size",),
    },
    _OWN_SIZES: {
        "HiDreamImagePipeline": ("size",),
        "Kandinsky5T2IPipeline": ("size",),
    },
    _ONE_GENERATOR: {
        "AmusedPipeline": ("picture", "size", "negative prompt", *_RUN),
    },
    _TOGETHER: {
        "Ideogram4Pipeline": (
            "steps",
            "guidance",
            "schedulers",
        ),
        "SanaSprintPipeline": ("steps",),
    },
    _DIFFUSERS: {
        "HunyuanDiTPAGPipeline": ("guidance",),
    },
    _GUESS: {
        "PRXPipeline": ("dry run",),
        "PRXPixelPipeline": ("dry run",),
        "ZImagePipeline": ("dry run",),
    },
}
"""Classes and promises by cause."""


def _by_cell(
    failing: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> Iterator[tuple[tuple[str, str], str]]:
    for cause, classes in failing.items():
        for name, promises in classes.items():
            yield from (((name, promise), cause) for promise in promises)


EXPECTED_FAILURES: dict[tuple[str, str], str] = dict(_by_cell(_FAILING))
"""The cause by class and promise."""
