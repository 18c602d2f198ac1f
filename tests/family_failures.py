"""What t2i does not keep yet of its promises for text-to-image classes, with the causes.

Strict: what is mended makes its test fail until it is taken off this list.
"""

from collections.abc import Iterator, Mapping

_RUN = ("is plain's", "seed", "steps", "batch", "guidance", "schedulers", "dry run")
"""What follows from a picture that is not made."""

_FAILING: dict[str, dict[str, tuple[str, ...]]] = {}
"""Classes and promises by cause."""


def _by_cell(
    failing: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> Iterator[tuple[tuple[str, str], str]]:
    for cause, classes in failing.items():
        for name, promises in classes.items():
            yield from (((name, promise), cause) for promise in promises)


EXPECTED_FAILURES: dict[tuple[str, str], str] = dict(_by_cell(_FAILING))
"""The cause by class and promise."""
