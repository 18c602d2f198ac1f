"""Abstract values of the libraries' source: what is known of an expression that is not run.

A value is a literal, one of the classes here, PRESENT (something that is not None) or UNKNOWN.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from t2i_cli.models import library_source
from t2i_cli.models.library_source import SourceClass

UNKNOWN = object()
PRESENT = object()
SourceValue = Any
"""An abstract value."""


class UnfitScheduler(Exception):  # noqa: N818 - a finding, not an error
    """What the source does with the scheduler fails, with the reason."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SchedulerValue:
    """The pipeline's scheduler: its class, that class's ancestors and attributes, its config."""

    cls: SourceClass
    ancestors: Sequence[SourceClass]
    members: frozenset[str]
    config: Mapping[str, SourceValue]


@dataclass(frozen=True, eq=False)
class PipelineValue:
    """The pipeline itself (`self`), with its class."""

    cls: SourceClass
    scheduler: SchedulerValue


class ConfigValue(dict[str, SourceValue]):
    """The scheduler's config."""

    def entry(self, name: object) -> SourceValue:
        """A value of the config. Raises UnfitScheduler if it has none of that name."""
        if isinstance(name, str) and name not in self:
            raise UnfitScheduler(f"its config has no {name}")
        return self.get(str(name), UNKNOWN)


@dataclass
class BlockResult:
    """What a block of statements comes to: with `ended`, it returns `value`."""

    ended: bool = False
    value: SourceValue = None


def truth(value: SourceValue) -> bool | None:
    """The truth of an abstract value, `None` if it is not known."""
    if value is UNKNOWN or value is PRESENT:
        return None
    if isinstance(value, SchedulerValue | PipelineValue):
        return True
    return bool(value)


def merged(values: Sequence[SourceValue]) -> SourceValue:
    """What is known of a value that is one of several."""
    first, *others = values
    if all(type(each) is type(first) and _equal(each, first) for each in others):
        return first
    return UNKNOWN if any(each is UNKNOWN or each is None for each in values) else PRESENT


def joined(environments: Sequence[dict[str, SourceValue]]) -> dict[str, SourceValue]:
    """What is known of names after one of several branches."""
    names = {name for each in environments for name in each}
    return {name: merged([each.get(name, UNKNOWN) for each in environments]) for name in names}


def bind_names(names: dict[str, SourceValue], target: ast.expr, found: SourceValue) -> None:
    """Give the names of an assignment's target their values."""
    if isinstance(target, ast.Name):
        names[target.id] = found
    elif isinstance(target, ast.Tuple | ast.List):
        parts = found if isinstance(found, tuple) else ()
        same = len(parts) == len(target.elts)
        for place, each in enumerate(target.elts):
            bind_names(names, each, parts[place] if same else UNKNOWN)


def compared(operator: ast.cmpop, left: SourceValue, right: SourceValue) -> SourceValue:
    """The outcome of a comparison, UNKNOWN unless both sides decide it."""
    if isinstance(operator, ast.Is | ast.IsNot) and right is None:
        if left is UNKNOWN:
            return UNKNOWN
        return (left is None) is isinstance(operator, ast.Is)
    if not (_is_literal(left) and (_is_literal(right) or isinstance(right, frozenset))):
        return UNKNOWN
    match operator:
        case ast.Eq():
            return bool(left == right)
        case ast.NotEq():
            return bool(left != right)
        case ast.In() if isinstance(right, tuple | frozenset):
            return left in right
        case ast.NotIn() if isinstance(right, tuple | frozenset):
            return left not in right
    return UNKNOWN


def _is_literal(value: SourceValue) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_literal, value))
    return value is None or isinstance(value, str | bool | int | float)


def _equal(one: SourceValue, other: SourceValue) -> bool:
    if isinstance(one, str | bool | int | float | tuple | dict | frozenset):
        return bool(one == other)
    return one is other


def raised_message(node: ast.Raise) -> str:
    """The first sentence that a `raise` has, with the expressions in it as dots."""
    for each in ast.walk(node):
        if isinstance(each, ast.JoinedStr):
            parts = [
                str(part.value) if isinstance(part, ast.Constant) else "…" for part in each.values
            ]
            text = "".join(parts)
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            text = each.value
        else:
            continue
        return " ".join(text.split(". ")[0].split()).rstrip(".")
    return "its source raises an error"


def find_function(module_name: str, name: str) -> tuple[str, ast.FunctionDef] | None:
    """The function that a module of diffusers binds to a name, and the module that has it."""
    module = library_source.read_module(module_name)
    for node in module.tree.body if module else ():
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return module_name, node
        if isinstance(node, ast.ImportFrom) and module:
            for alias in node.names:
                other = module.absolute_name(node)
                if (alias.asname or alias.name) == name and other.startswith("diffusers."):
                    return find_function(other, alias.name)
    return None


def method_parameters(cls: SourceClass, name: str) -> SourceValue:
    """The names of a method's parameters, UNKNOWN if it is not found."""
    _, method = library_source.find_attribute(cls, name) or (None, None)
    if not isinstance(method, ast.FunctionDef):
        return UNKNOWN
    given = method.args
    return frozenset(each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs))


@cache
def returned_kind(function: ast.FunctionDef) -> SourceValue:
    """PRESENT if a function returns something wherever it does, else UNKNOWN."""
    returns = [each for each in ast.walk(function) if isinstance(each, ast.Return)]
    return PRESENT if returns and all(each.value for each in returns) else UNKNOWN


def literal_defaults(function: ast.FunctionDef) -> Iterator[tuple[str, SourceValue]]:
    """The parameters with a default, and its value, UNKNOWN where it is no literal."""
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    pairs = [
        *zip(positional[len(positional) - len(given.defaults) :], given.defaults, strict=True),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
    ]
    for parameter, default in pairs:
        if default is not None:
            try:
                yield parameter.arg, _as_value(ast.literal_eval(default))
            except ValueError:
                yield parameter.arg, UNKNOWN


def _as_value(literal: object) -> SourceValue:
    return tuple(literal) if isinstance(literal, list) else literal


@cache
def mentions_scheduler(function: ast.FunctionDef) -> bool:
    """Whether a function does anything with a scheduler."""
    return any(
        (isinstance(each, ast.Attribute) and each.attr == "scheduler")
        or (isinstance(each, ast.Name) and each.id == "scheduler")
        for each in ast.walk(function)
    )
