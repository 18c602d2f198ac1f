"""Prints how readable the tree is, in figures: words per name, shared names, sizes, cycles.

`python -m benchmarks.readability [FOLDER …]`; without a folder, t2i's own source. Several folders
are printed side by side. The figures are signals to look at, not targets.
"""

import ast
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "t2i_cli"
FIELD = "guidance_scale"
"""A request field, to count the files that know one."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def measure(folder: Path) -> dict[str, str]:
    """The figures of the Python files below a folder, by what they are called."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py")}
    public = [name for tree in trees.values() for name in _public_names(tree)]
    words = [len(_WORD.findall(name)) or 1 for name in public]
    homes: dict[str, set[Path]] = defaultdict(set)
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, Definition) and not node.name.startswith("_"):
                homes[node.name].add(path)
    places = sum(map(len, homes.values()))
    shared = sum(len(paths) for paths in homes.values() if len(paths) > 1)
    functions = [
        node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, Function)
    ]
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    sizes = [len(path.read_text(encoding="utf-8").splitlines()) for path in trees]
    documented = [
        ast.get_docstring(node) is not None
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, Definition) and not node.name.startswith("_")
    ]
    return {
        "words per public name": f"{statistics.mean(words):.2f}",
        "public names of one word": f"{sum(count == 1 for count in words) / len(words):.0%}",
        "definitions whose name stands in several modules": f"{shared / places:.0%}",
        "most parameters of a function": str(max(map(_parameters, functions))),
        "lines of a function, median and 90th percentile": (
            f"{statistics.median(lengths):.0f}, {statistics.quantiles(lengths, n=10)[-1]:.0f}"
        ),
        "modules": str(len(trees)),
        "lines of the longest module": str(max(sizes)),
        "public definitions with a docstring": f"{sum(documented) / len(documented):.0%}",
        f"files that know {FIELD}": str(_files_that_know(folder, FIELD)),
        "modules in import cycles, lazy and typing imports included": str(
            _in_cycles(trees, folder)
        ),
    }


def _public_names(tree: ast.Module) -> Iterator[str]:
    """Functions, classes, and methods of a module, without those that begin with `_`."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (
                member.name
                for member in node.body
                if isinstance(member, Function) and not member.name.startswith("_")
            )


def _parameters(node: Function) -> int:
    """How many parameters a function takes, `self` included."""
    arguments = node.args
    return len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)


def _files_that_know(folder: Path, text: str) -> int:
    kinds = {".py", ".js", ".html"}
    files = [path for path in folder.rglob("*") if path.suffix in kinds]
    return sum(text in path.read_text(encoding="utf-8") for path in files)


def _in_cycles(trees: dict[Path, ast.Module], folder: Path) -> int:
    """How many modules import themselves, by way of others."""
    names = {_module(path, folder): path for path in trees}
    imports = {name: _imported(trees[path], names) - {name} for name, path in names.items()}
    reached = {name: set(found) for name, found in imports.items()}
    changed = True
    while changed:
        changed = False
        for found in reached.values():
            further = set().union(*(reached[name] for name in found)) - found
            changed = changed or bool(further)
            found |= further
    return sum(name in found for name, found in reached.items())


def _module(path: Path, folder: Path) -> str:
    parts = [folder.name, *path.relative_to(folder).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(tree: ast.Module, names: dict[str, Path]) -> set[str]:
    """The modules of the package that a module imports, wherever the statement stands."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in names and not node.level:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                found.add(module if module in names else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & names.keys()
    return found


def main() -> None:
    """Print the figures of each folder, a line a figure."""
    folders = [Path(argument).resolve() for argument in sys.argv[1:]] or [SOURCE]
    columns = [measure(folder) for folder in folders]
    for title in columns[0]:
        print(f"{title}: {'  '.join(column[title] for column in columns)}")


if __name__ == "__main__":
    main()
