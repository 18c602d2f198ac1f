"""The tree as a stranger meets it: a public name lives in one module."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import t2i_cli

SOURCE = Path(t2i_cli.__file__).parent
COMMANDS = SOURCE / "cli" / "commands"
"""Functions there are called as the commands that they are."""


def _modules() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}


def _defined(tree: ast.Module) -> set[str]:
    """The public names that a module defines: functions, classes, constants."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if not name.startswith("_")}


def test_a_public_name_lives_in_one_module() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path, tree in _modules().items():
        if COMMANDS not in path.parents:
            for name in _defined(tree):
                homes[name].append(str(path.relative_to(SOURCE)))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_every_module_imports_on_a_system_without_fcntl() -> None:
    # Windows has none; a module that needs it there says so when it is used, not when it is read.
    code = (
        "import sys, pkgutil, importlib; sys.modules['fcntl'] = None; import t2i_cli\n"
        "for found in pkgutil.walk_packages(t2i_cli.__path__, 't2i_cli.'):\n"
        "    if not found.name.endswith(('__main__', 'torchserve.handler')):\n"
        "        importlib.import_module(found.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
