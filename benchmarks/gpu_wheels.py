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
AT_HAND = ("torch", "numpy")
"""What the other machine has, each with what it requires."""
_MEASURED = ("--device", "cpu", "--tiny", "--no-compile", "--runs", "1")
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
    imported = {_normal(name) for module in modules for name in owners.get(module, ())}
    at_hand = _with_requirements(AT_HAND)
    found = _with_requirements(imported) | imported
    # Of what is only required, what is heavy and unused stays: the cloud's libraries.
    unused = {name for name in found - imported if name.startswith(("google", "grpc", "nvidia"))}
    return sorted(found - at_hand - unused - _OURS)


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
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        for line in required:
            match = re.match(r"[A-Za-z0-9._-]+", line)
            if match and "extra ==" not in line:
                waiting.append(_normal(match.group()))
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
            _run(command, os.environ | {"T2I_TEST_DEVICE": "cpu"})
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
        names = {name.partition(".")[0] for name in sys.modules}
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


def _prove(wanted: Sequence[str]) -> None:
    """Run the probes where nothing can be imported but these, what is at hand, and our own code."""
    with tempfile.TemporaryDirectory(prefix="t2i-") as name:
        folder = Path(name)
        for distribution in [*wanted, *sorted(_with_requirements(AT_HAND))]:
            _link(distribution, folder)
        path = os.pathsep.join(map(str, (folder, ROOT / "src", ROOT)))
        environment = os.environ | {"PYTHONPATH": path, "T2I_TEST_DEVICE": "cpu"}
        for command in _commands(folder / "modules", flags=("-S", "-s")):
            _run(command, environment)
            print(f"without anything else: {' '.join(command[7:9])} …", flush=True)


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
