"""The versions of Python packages for an image: those that this machine runs t2i with."""

import importlib.metadata
import re

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r";.*\bextra\s*==")


def package_constraints(package: str, *, cuda_build: str) -> str:
    """A constraints file for pip, with all that `package` requires and that is installed here.

    Of versions the local part is left out, as of torch's build for this machine's devices; torch
    gets that of `cuda_build`. Packages for other platforms are left to those that require them.
    """
    versions: dict[str, str] = {}
    waiting = _requirements(package)
    while waiting:
        name = waiting.pop()
        if name in versions:
            continue
        try:
            versions[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:  # for another platform or Python
            continue
        waiting += _requirements(name)
    if "torch" in versions:
        versions["torch"] += f"+{cuda_build}"
    return "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def _requirements(package: str) -> list[str]:
    """The normalised names of a package's requirements, without those of its extras."""
    found = []
    for requirement in importlib.metadata.requires(package) or ():
        name = _NAME.match(requirement)
        if name and not _EXTRA.search(requirement):
            found.append(re.sub(r"[-_.]+", "-", name[0]).lower())
    return found
