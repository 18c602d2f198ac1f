"""The sizes that a pipeline keeps, read from its source: divisors, lists of sizes, an own area."""

import ast
import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from t2i_cli.models import diffusers_folder, library_source
from t2i_cli.models.class_facts import PipelineFacts

_SIDES = {"height", "width", "size"}
"""Names of the sides in the sources."""
_CHECKING_METHODS = ("check_inputs", "__call__")
_OWN_AREA = "S_max"
"""What HiDream calls the pixels to which it scales every size."""
_COMPONENT_VALUE = re.compile(r"self\.(\w+)\.config\.(\w+)")
_Names = Mapping[str, ast.expr]


def divisors(facts: PipelineFacts, folder: Path) -> set[int]:
    """The numbers that width and height are divided by without remainder."""
    reader = _ExpressionReader(facts, folder)
    found = set()
    for function, given in _size_functions(facts):
        names = _assigned(function) | given
        for node in ast.walk(function):
            match node:
                case ast.BinOp(left=ast.Name(id=side), op=ast.Mod()) if side in _SIDES:
                    found.add(reader.number(node.right, names))
    return {round(value) for value in found if value and value >= 1}


@lru_cache(maxsize=256)
def kept_sizes(facts: PipelineFacts) -> tuple[tuple[int, int], ...]:
    """The widths and heights that a pipeline has a list of; empty if it has none."""
    for method in map(facts.method, _CHECKING_METHODS):
        for node in ast.walk(method) if method else ():
            match node:
                case ast.Compare(
                    left=ast.Tuple(elts=[ast.Name(id="width"), ast.Name(id="height")]),
                    ops=[ast.NotIn()],
                    comparators=[ast.Attribute(value=ast.Name(id="self"), attr=name)],
                ):
                    return _size_list(_constructor_value(facts, name))
    return ()


def own_area(facts: PipelineFacts, folder: Path) -> int | None:
    """The pixels to which a pipeline scales every size; `None` if it keeps sizes."""
    call = facts.method("__call__")
    names = _assigned(call) if call else {}
    if _OWN_AREA not in names:
        return None
    area = _ExpressionReader(facts, folder).number(names[_OWN_AREA], names)
    return round(area) if area else None


def scaled_size(width: int, height: int, area: int, multiple: int) -> tuple[int, int]:
    """The size that a pipeline with an own area makes of another."""
    scale = math.sqrt(area / (width * height))
    return (
        int(width * scale // multiple * multiple),
        int(height * scale // multiple * multiple),
    )


def _size_functions(facts: PipelineFacts) -> Iterator[tuple[ast.FunctionDef, dict[str, ast.expr]]]:
    """The functions that look at a size, and the arguments of those that are not methods."""
    module = library_source.read_module(facts.module)
    functions = {
        node.name: node
        for node in (module.tree.body if module else ())
        if isinstance(node, ast.FunctionDef)
    }
    for method in map(facts.method, _CHECKING_METHODS):
        if method is None:
            continue
        yield method, {}
        for node in ast.walk(method):
            match node:
                case ast.Call(func=ast.Name(id=name)) if name in functions:
                    function = functions[name]
                    parameters = [each.arg for each in function.args.args]
                    if _SIDES & set(parameters):
                        yield function, _bound(function, parameters, node)


def _bound(function: ast.FunctionDef, parameters: list[str], call: ast.Call) -> dict[str, ast.expr]:
    defaults = function.args.defaults
    last = parameters[len(parameters) - len(defaults) :]
    keywords = {each.arg: each.value for each in call.keywords if each.arg}
    return {
        **dict(zip(last, defaults, strict=True)),
        **dict(zip(parameters, call.args, strict=False)),
        **keywords,
    }


@lru_cache(maxsize=256)
def _assigned(function: ast.FunctionDef) -> dict[str, ast.expr]:
    """What a function assigns to its names, the first time."""
    found: dict[str, ast.expr] = {}
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name not in _SIDES:
                found.setdefault(name, value)
    return found


def _constructor_value(facts: PipelineFacts, attribute: str) -> ast.expr | None:
    """What the constructor assigns to an attribute."""
    constructor = facts.method("__init__")
    for node in ast.walk(constructor) if constructor else ():
        match node:
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)]):
                if name == attribute:
                    return node.value
    return None


def _size_list(value: ast.expr | None) -> tuple[tuple[int, int], ...]:
    try:
        found = ast.literal_eval(value) if value else ()
        return tuple((int(width), int(height)) for width, height in found)
    except (TypeError, ValueError):
        return ()


class _ExpressionReader:
    """Computes a number of a pipeline's source from the configs of a model."""

    def __init__(self, facts: PipelineFacts, folder: Path) -> None:
        self._facts = facts
        self._folder = folder

    def number(self, expression: ast.expr, names: _Names, depth: int = 8) -> float | None:
        """The value of an expression, `None` if it is not known."""
        if not depth:
            return None
        match expression:
            case ast.Constant(value=int() | float() as value):
                return value
            case ast.Name(id=name) if name in names:
                return self.number(names[name], names, depth - 1)
            case ast.Name(id=name):
                return self._configured(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return self._attribute(name, depth)
            case ast.Attribute():
                return self._component_value(expression)
            case ast.IfExp():
                first = self.number(expression.body, names, depth - 1)
                return first or self.number(expression.orelse, names, depth - 1)
            case ast.BinOp():
                left = self.number(expression.left, names, depth - 1)
                right = self.number(expression.right, names, depth - 1)
                return None if left is None or right is None else _joined(left, expression, right)
        return None

    def _attribute(self, name: str, depth: int) -> float | None:
        """An attribute that the constructor sets: a factor of the VAE, or what is written there."""
        value = _constructor_value(self._facts, name)
        if "scale_factor" in name and not isinstance(value, ast.Constant):
            return diffusers_folder.vae_scale_factor(self._folder)
        return None if value is None else self.number(value, {}, depth - 1)

    def _component_value(self, expression: ast.Attribute) -> float | None:
        found = _COMPONENT_VALUE.fullmatch(ast.unparse(expression))
        value = found and diffusers_folder.component_config(self._folder, found[1]).get(found[2])
        return _plain_number(value)

    def _configured(self, name: str) -> float | None:
        """A parameter of the constructor, as model_index.json sets it."""
        parameter = self._facts.init.get(name)
        default = parameter.default if parameter else None
        return _plain_number(diffusers_folder.read_model_index(self._folder).get(name, default))


def _plain_number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _joined(left: float, operation: ast.BinOp, right: float) -> float | None:
    match operation.op:
        case ast.Mult():
            return left * right
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.FloorDiv() if right:
            return left // right
        case ast.Pow() if abs(right) <= 16:  # noqa: PLR2004 - sizes are small powers
            return float(left**right)
    return None
