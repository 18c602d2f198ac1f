"""Collect what benchmarks/gpu.py needs on a machine that has torch, and where nothing is installed.

Which distributions those are is measured: each probe runs here and tells which modules it has
imported. `python -m benchmarks.gpu_wheels list` prints them; `prove` runs the probes again with
these and torch's own alone, so that a missing one is found before a card is at hand; `collect
FOLDER` downloads their wheels for another Python (`--python 3.12`) and unpacks them. There,
`PYTHONPATH=FOLDER/site:src:. python3 -m benchmarks.gpu` runs. `make gpu-bundle` does all three.
"""

import argparse
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
AT_HAND = {"torch", "numpy", "triton", "sympy", "mpmath", "networkx", "setuptools"}
"""What the other machine has. Of torch's small requirements others may need a newer one."""
_MEASURED = (
    "--device",
    "cpu",
    "--tiny",
    "--sides",
    "diffusers,t2i,t2i batched,cold",
    "--runs",
    "1",
)
PROBES: tuple[tuple[str, ...], ...] = (
    ("benchmarks.gpu", *_MEASURED),
    ("t2i_cli", "generate", "a star", "-m", "postcard", "--steps", "1", "-o", "{folder}/x.png"),
    ("pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "-k", "sd-float32-model-offload"),
    # What the warm worker is, which one of the tests starts.
    ("pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "-k", "worker_that_leaves"),
)
_TESTS = ("tests/test_gpu_matrix.py", "tests/test_gpu_life.py")
_PLATFORMS = ("2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")
_OURS = {"t2i-cli"}
_CLOUD = ("google", "grpc", "nvidia", "hf-xet")
"""Beginnings of names of what is large, and unused without a network."""
_SMALL = {"google-crc32c"}
_ENVIRONMENT = {"T2I_TEST_DEVICE": "cpu", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print the distributions")
    commands.add_parser("prove", help="run the probes with nothing else")
    collect = commands.add_parser("collect", help="download and unpack their wheels")
    collect.add_argument("folder", type=Path)
    collect.add_argument("--python", default="3.12", help="the other machine's Python")
    probe = commands.add_parser("probe", help="run a module, and write down what it imports")
    probe.add_argument("file", type=Path)
    probe.add_argument("module")
    probe.add_argument("rest", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.command == "probe":
        _probe(options.file, options.module, options.rest)
        return 0
    wanted = needed_distributions(_imported_modules())
    print("\n".join(f"{name}=={metadata.version(name)}" for name in wanted), flush=True)
    if options.command == "prove":
        _prove(wanted)
    if options.command == "collect":
        _collect(wanted, options.folder, options.python)
    return 0


def needed_distributions(modules: Iterable[str]) -> list[str]:
    """The distributions of top-level modules, with what those require, less what is at hand.

    What is required is taken along, too: libraries ask for the versions of what they do not import.
    """
    owners = metadata.packages_distributions()
    imported = {
        _normal(name)
        for module in modules
        for name in owners.get(module.partition(".")[0], ())
        if "." not in module or _holds(name, module)
    }
    # A process that a probe starts, as the warm worker, is not seen; what t2i declares is.
    declared = {_normal(name) for ours in _OURS for name in _required(ours)}
    found = _with_requirements(imported | declared)
    # Of what is only required, what is heavy and unused stays: the cloud's libraries.
    cloud = {name for name in found - imported if name.startswith(_CLOUD)}
    return sorted(found - AT_HAND - (cloud - _SMALL) - _OURS)


def _holds(distribution: str, module: str) -> bool:
    """Whether a module of a namespace that several distributions share is of this one."""
    inside = f"{module.replace('.', '/')}"
    files = map(str, metadata.files(distribution) or ())
    return any(file.startswith((f"{inside}/", f"{inside}.")) for file in files)


def _required(name: str) -> list[str]:
    """The names that a distribution requires without extras."""
    lines = metadata.requires(name) or []
    found = [re.match(r"[A-Za-z0-9._-]+", line) for line in lines if "extra ==" not in line]
    return [match.group() for match in found if match]


def _normal(name: str) -> str:
    """A distribution's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _with_requirements(names: Iterable[str]) -> set[str]:
    """The installed distributions of these names and all that they require without extras."""
    found: set[str] = set()
    waiting = [_normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found or name in _OURS:
            continue
        try:
            waiting += map(_normal, _required(name))
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
    return found


def _commands(file: Path, flags: Sequence[str] = ()) -> Iterable[list[str]]:
    for module, *rest in PROBES:
        more = _TESTS if module == "pytest" else ()
        filled = [word.format(folder=file.parent) for word in rest]
        probe = [*("-m", "benchmarks.gpu_wheels", "probe", str(file)), module, *filled, *more]
        yield [sys.executable, *flags, *probe]


def _imported_modules() -> set[str]:
    """The top-level modules that the probes import in this environment."""
    found: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="t2i-") as folder:
        for number, command in enumerate(_commands(Path(folder) / "modules")):
            file = Path(folder) / f"modules{number}"
            command[4] = str(file)
            _run(command, os.environ | _ENVIRONMENT)
            found |= set(json.loads(file.read_text()))
    return found


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def _probe(file: Path, module: str, rest: Sequence[str]) -> None:
    """Run a module as `python -m` does, and write its imports even where it ends the process."""

    def write() -> None:
        # A namespace, which several distributions share, is no file and imports nothing.
        found = {name for name, one in sys.modules.items() if getattr(one, "__file__", None)}
        names = {_package(name) for name in found}
        file.write_text(json.dumps(sorted(names - set(sys.stdlib_module_names))))

    leave = os._exit

    def written_exit(code: int) -> None:
        write()
        leave(code)

    os._exit = written_exit  # type: ignore[assignment]
    sys.argv = [module, *rest]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        write()


def _package(name: str) -> str:
    """The outermost package of a module that has a file: of a namespace, what is inside it."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        outer = ".".join(parts[:length])
        if getattr(sys.modules.get(outer), "__file__", None):
            return outer
    return name


def _prove(wanted: Sequence[str]) -> None:
    """Run the probes where nothing can be imported but these, what is at hand, and our own code."""
    with tempfile.TemporaryDirectory(prefix="t2i-") as name:
        folder = Path(name)
        for distribution in [*wanted, *sorted(_with_requirements(AT_HAND))]:
            _link(distribution, folder)
        path = os.pathsep.join(map(str, (folder, ROOT / "src", ROOT)))
        environment = os.environ | _ENVIRONMENT | {"PYTHONPATH": path}
        # Outside the virtual environment, for the processes that a probe starts, too.
        python = getattr(sys, "_base_executable", sys.executable)
        for command in _commands(folder / "modules", flags=("-s",)):
            _run([python, *command[1:]], environment)
            print(f"without anything else: {' '.join(command[6:8])} …", flush=True)


def _link(distribution: str, folder: Path) -> None:
    """Links to a distribution's modules and metadata, as it is installed here."""
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return
    tops = {file.parts[0] for file in found.files or () if file.parts[0] not in {"..", "bin"}}
    for top in tops - {"__pycache__"}:
        target = folder / top
        if not target.exists():
            target.symlink_to(Path(str(found.locate_file(top))))


def _collect(wanted: Sequence[str], folder: Path, python: str) -> None:
    """Download the wheels for another Python on Linux, and unpack them to `folder`/site."""
    wheels, site = folder / "wheels", folder / "site"
    wheels.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(site, ignore_errors=True)
    own = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["pip"]
    command = [*own, "download", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "-d", str(wheels)]
    for platform in _PLATFORMS:
        command += ["--platform", f"manylinux_{platform}_x86_64"]
    _run([*command, *(f"{name}=={metadata.version(name)}" for name in wanted)], dict(os.environ))
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    size = sum(wheel.stat().st_size for wheel in wheels.glob("*.whl"))
    print(f"{len(wanted)} wheels, {size / 2**20:.0f} MiB, unpacked to {site}")


if __name__ == "__main__":
    sys.exit(main())
