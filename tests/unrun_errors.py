"""Lists the expressions that build an error and that no test ran: `make errors` (docs/testing.md).

An f-string that indexes an empty list fails only when the error is built, and then as a bug.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from coverage import CoverageData

import t2i_cli

SOURCE = Path(t2i_cli.__file__).parent


def error_expressions(tree: ast.Module) -> Iterator[ast.expr]:
    """The calls of classes named …Error, and of functions so named that make one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name.lower().endswith("error") and name != "error":
                yield node


def unrun_errors(data: CoverageData) -> Iterator[str]:
    """`file:line: expression` of each of which no line is in the data."""
    for path in sorted(SOURCE.rglob("*.py")):
        ran = set(data.lines(str(path)) or ())
        for node in error_expressions(ast.parse(path.read_text(encoding="utf-8"))):
            if not ran & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)):
                yield f"{path.relative_to(SOURCE)}:{node.lineno}: {ast.unparse(node)}"


def main() -> None:
    """Print them all; exit 1 if there are any."""
    data = CoverageData(sys.argv[1])
    data.read()
    found = list(unrun_errors(data))
    sys.stdout.write("".join(f"{line}\n" for line in found))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
