"""CUDA builds of torch for the image of t2i's server, and the NVIDIA drivers that they need."""

import re

from t2i_cli.errors import InputError
from t2i_cli.known_names import suggest_name

LEAST_DRIVERS = {"cu126": "525.60.13", "cu129": "525.60.13", "cu130": "580.65.06"}
"""PyTorch's builds of torch 2.13, and the least driver of their CUDA's major version.

docs.nvidia.com/deploy/cuda-compatibility: minor version compatibility.
"""
DEFAULT_CUDA_BUILD = "cu126"
"""It runs on the drivers of all of Vertex AI's machines; Blackwell's GPUs need a later one."""
_TAG = re.compile(r":[\w.-]*-(cu\d+)$")


def check_cuda_build(build: str) -> None:
    """Raise InputError for a build that is not known."""
    if build not in LEAST_DRIVERS:
        raise InputError(
            f"--cuda must be {', '.join(LEAST_DRIVERS)}, not {build}.",
            hint=suggest_name(build, LEAST_DRIVERS).strip() or None,
            field="cuda",
        )


def image_tag(version: str, build: str) -> str:
    """The tag of an image; it names a build that is not the default, so that `deploy` knows it."""
    return version if build == DEFAULT_CUDA_BUILD else f"{version}-{build}"


def least_driver(image: str) -> str:
    """The least driver that an image of t2i's server needs, by its tag."""
    named = _TAG.search(image)
    return LEAST_DRIVERS.get(named[1] if named else "", LEAST_DRIVERS[DEFAULT_CUDA_BUILD])


def needs_newer_driver(image: str | None) -> bool:
    """Whether an image needs a driver that a machine may not have unless it is asked for."""
    return image is not None and least_driver(image) != LEAST_DRIVERS[DEFAULT_CUDA_BUILD]
