"""What the installed build of torch can compute on, read from its files without importing it."""

import ast
import sys

from t2i_cli.models import library_source

_ACCELERATORS = {"cuda", "hip", "xpu"}
"""Names in torch/version.py: the version of an accelerator's toolkit, or None."""


def is_cpu_only() -> bool:
    """Whether torch was surely built for CPUs alone, so that it need not be asked for devices."""
    # torch knows Metal on every Mac; what is imported already is asked.
    if sys.platform == "darwin" or "torch" in sys.modules:
        return False
    module = library_source.read_module("torch.version")
    values: dict[str, ast.expr | None] = {}
    for node in module.tree.body if module else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            values[node.target.id] = node.value
        elif isinstance(node, ast.Assign):
            values |= {t.id: node.value for t in node.targets if isinstance(t, ast.Name)}
    return values.keys() >= _ACCELERATORS and all(
        isinstance(value := values[name], ast.Constant) and value.value is None
        for name in _ACCELERATORS
    )
