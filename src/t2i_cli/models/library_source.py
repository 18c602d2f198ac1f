"""Read classes of diffusers and transformers from their source files, which imports neither.

Importing them takes seconds. What the source does not prove is `None`, and the caller imports the
library to ask it: a class behind an unknown condition, a base that is not found, a computed list.
"""

import ast
import gc
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_REQUIRED_PACKAGES = {
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "sentencepiece",
    "scipy",
}
"""The packages X whose `is_X_available()` asks for nothing but an installed X."""
_SWITCHES = {"USE_TORCH", "USE_TF", "DIFFUSERS_SLOW_IMPORT"}
"""Environment variables with which the libraries hide classes."""
_MAX_HOPS = 12
"""Imports that a name is followed through; a cycle ends there."""


@dataclass(frozen=True, eq=False)
class SourceModule:
    """A parsed module of a library, by its dotted name."""

    name: str
    is_package: bool
    tree: ast.Module

    def absolute_name(self, node: ast.ImportFrom) -> str:
        """The dotted name of the module that an import statement of this module names."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        kept = parts[: len(parts) + self.is_package - node.level]
        return ".".join([*kept, *([node.module] if node.module else [])])


@dataclass(frozen=True, eq=False)
class SourceClass:
    """A class of a library. A class of another package has no `node`, and no bases here."""

    module: str
    name: str
    node: ast.ClassDef | None

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from other classes."""
        return self.module, self.name


def is_readable() -> bool:
    """Whether the source tells what an import would: no library is loaded, nor hides a class."""
    return "diffusers" not in sys.modules and not _SWITCHES & os.environ.keys()


@cache
def package_folder(package: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec and spec.origin else None


@cache
def package_is_installed(package: str) -> bool:
    """Whether a package can be imported and has a version, as the libraries ask."""
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return package_folder(package) is not None


@cache
def read_module(name: str) -> SourceModule | None:
    """Parse a module of a library, `None` if there is no such file or it is not Python."""
    package, *parts = name.split(".")
    folder = package_folder(package)
    if folder is None:
        return None
    path = folder.joinpath(*parts)
    for file, is_package in ((path / "__init__.py", True), (path.with_suffix(".py"), False)):
        try:
            return SourceModule(name, is_package, _parse(file.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, SyntaxError, ValueError):
            return None
    return None


def _parse(source: bytes) -> ast.Module:
    """Parse a file without garbage collection, which doubles the time for its many nodes."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if was_on:
            gc.enable()


@cache
def find_class(module_name: str, name: str, hops: int = _MAX_HOPS) -> SourceClass | None:
    """The class that a module binds to a name, itself or by an import."""
    module = read_module(module_name)
    if module is None or not hops:
        return None
    found = [
        (statement, certain)
        for statement, certain in _statements(module.tree.body)
        if name in _bound_names(statement)
    ]
    if not found or not all(certain for _, certain in found):
        return None
    statement = found[-1][0]
    if isinstance(statement, ast.ClassDef):
        return SourceClass(module_name, name, statement)
    if isinstance(statement, ast.ImportFrom):
        other = module.absolute_name(statement)
        original = next(a.name for a in statement.names if (a.asname or a.name) == name)
        if other.partition(".")[0] not in {"diffusers", "transformers"}:
            return SourceClass(other, original, None)
        return find_class(other, original, hops - 1)
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
        return find_class(module_name, statement.value.id, hops - 1)
    return None


def imports_from(module_name: str, submodule: str) -> bool:
    """Whether a package surely takes names from one of its submodules."""
    module = read_module(module_name)
    return module is not None and any(
        certain and isinstance(node, ast.ImportFrom) and (node.level, node.module) == (1, submodule)
        for node, certain in _statements(module.tree.body)
    )


@cache
def missing_imports(module_name: str) -> bool:
    """Whether a module imports, without a condition, a package that is not installed."""
    module = read_module(module_name)
    if module is None:
        return True
    roots = set()
    for node in module.tree.body:
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            roots.add(node.module.partition(".")[0])
    roots -= sys.stdlib_module_names
    return any(package_folder(root) is None for root in roots)


@cache
def ancestors(cls: SourceClass) -> list[SourceClass] | None:
    """The method resolution order, `None` if a base is not found.

    By C3 linearisation (https://docs.python.org/3/howto/mro.html).
    """
    if cls.node is None:
        return [cls]
    orders, bases = [], []
    for expression in cls.node.bases:
        base = _base_class(cls.module, expression)
        order = ancestors(base) if base else None
        if base is None or order is None:
            return None
        bases.append(base)
        orders.append(order)
    merged, lists = [cls], [*orders, bases]
    while lists := [each for each in lists if each]:
        heads = [each[0] for each in lists]
        tails = {other.key for each in lists for other in each[1:]}
        head = next((each for each in heads if each.key not in tails), None)
        if head is None:
            return None
        merged.append(head)
        lists = [each[1:] if each[0].key == head.key else each for each in lists]
    return merged


def path_to_base(cls: SourceClass, bases: frozenset[tuple[str, str]]) -> list[SourceClass] | None:
    """The classes from `cls` up to the first of some bases by their keys; `None` if unknown.

    Unlike `ancestors`, it reads nothing of the base.
    """
    if cls.key in bases:
        return []
    for expression in cls.node.bases if cls.node else ():
        base = _base_class(cls.module, expression)
        path = path_to_base(base, bases) if base else None
        if path is not None:
            return [cls, *path]
    return None


def find_attribute(cls: SourceClass, name: str) -> tuple[SourceClass, ast.stmt] | None:
    """The statement that defines an attribute of a class, and the class that has it.

    `None` if there is none in the library's own classes, or it is not known.
    """
    return _own_attribute(cls, name) or next(
        (found for each in ancestors(cls) or () if (found := _own_attribute(each, name))), None
    )


def _own_attribute(cls: SourceClass, name: str) -> tuple[SourceClass, ast.stmt] | None:
    for statement in cls.node.body if cls.node else ():
        if name in _bound_names(statement):
            return cls, statement
    return None


def constant(module_name: str, name: str) -> object:
    """The literal that a module assigns to a name; raises ValueError if there is none."""
    module = read_module(module_name)
    for statement, certain in _statements(module.tree.body) if module else ():
        if certain and name in _bound_names(statement):
            value = getattr(statement, "value", None)
            if isinstance(value, ast.expr):
                return ast.literal_eval(value)
    raise ValueError(f"{module_name} has no literal {name}")


def _base_class(module: str, expression: ast.expr) -> SourceClass | None:
    if isinstance(expression, ast.Name):
        return find_class(module, expression.id) or _builtin(expression.id)
    if isinstance(expression, ast.Subscript):  # Generic[T]
        return _base_class(module, expression.value)
    text = ast.unparse(expression)
    is_torch = text.startswith(("nn.", "torch."))
    return SourceClass("torch", text.removeprefix("torch."), None) if is_torch else None


def _builtin(name: str) -> SourceClass | None:
    return SourceClass("builtins", name, None) if name in {"object", "dict", "list"} else None


def _bound_names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {statement.name}
    if isinstance(statement, ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    if isinstance(statement, ast.Assign):
        return {target.id for target in statement.targets if isinstance(target, ast.Name)}
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return {statement.target.id}
    return set()


def _statements(body: list[ast.stmt], certain: bool = True) -> Iterator[tuple[ast.stmt, bool]]:
    """The statements of a module that run, those of conditions included, and whether surely.

    The libraries' lazy modules repeat what they have below `if TYPE_CHECKING`, which is read here.
    """
    for statement in body:
        if isinstance(statement, ast.If):
            value = _truth(statement.test)
            if value is not False:
                yield from _statements(statement.body, certain and value is True)
            if value is not True:
                yield from _statements(statement.orelse, certain and value is False)
        elif isinstance(statement, ast.Try):
            missing = _dependency_is_missing(statement)
            if missing is False:
                yield from _statements(statement.orelse, certain)
                continue
            for part in (statement.body, statement.orelse, *(h.body for h in statement.handlers)):
                yield from _statements(part, certain=False)
        else:
            yield statement, certain


def _dependency_is_missing(statement: ast.Try) -> bool | None:
    """Whether `try: if not is_x_available(): raise …` raises."""
    first = statement.body[0]
    if len(statement.body) == 1 and isinstance(first, ast.If) and not first.orelse:
        if len(first.body) == 1 and isinstance(first.body[0], ast.Raise):
            return _truth(first.test)
    return None


def _truth(test: ast.expr) -> bool | None:
    """The truth of a condition on what is installed, `None` if it is not known."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        value = _truth(test.operand)
        return None if value is None else not value
    if isinstance(test, ast.BoolOp):
        values = {_truth(value) for value in test.values}
        decisive = isinstance(test.op, ast.Or)
        if decisive in values:
            return decisive
        return None if None in values else not decisive
    if isinstance(test, ast.Name) and test.id == "TYPE_CHECKING":
        return True
    if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and not test.args:
        package = test.func.id.removeprefix("is_").removesuffix("_available")
        if test.func.id == f"is_{package}_available" and package in _REQUIRED_PACKAGES:
            return package_is_installed(package)
    return None
