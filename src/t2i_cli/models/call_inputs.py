"""Which input a pipeline's call cannot do without, read from its source: a prompt alone, or more.

The call is followed with nothing but a prompt, a size and a number of steps. What the source does
not decide is taken to work: an input is needed only if every way through the call fails without it.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from t2i_cli.models.class_facts import PipelineFacts

_GIVEN = {"self", "prompt", "height", "width", "num_inference_steps", "generator"}
"""Parameters that t2i sets in every call."""
_MAX_DEPTH = 4
"""Methods of the pipeline that are followed into one another."""
_READING_FUNCTIONS = {"len", "list", "tuple", "iter", "sorted", "sum", "min", "max", "enumerate"}
"""Built-in functions that fail for None."""
_READING_METHODS = {"preprocess", "preprocess_video", "encode"}
"""Methods of components that fail for None: image processors' and autoencoders'."""
_UNREAD = (ast.Lambda, ast.FunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class _Missing:
    """The value None, of an input that is not given if it has a name."""

    name: str = ""


_SOMETHING, _UNKNOWN = object(), object()
"""A value that is not None, and one of which nothing is known."""
_Names = dict[str, object]


class _CallFails(Exception):  # noqa: N818 - control flow, not an error
    """The call fails on the way that is followed, for want of an input."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _CallReturns(Exception):  # noqa: N818 - control flow, not an error
    """The function returns on the way that is followed."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value


def needed_input(facts: PipelineFacts) -> str | None:
    """The input without which the pipeline's call fails; `None` if a prompt alone may do."""
    call = facts.method("__call__")
    if call is None:
        return None
    reader = _CallReader(facts.method)
    names: _Names = {
        name: _of_default(name, parameter.default)
        for name, parameter in facts.call.items()
        if name not in _GIVEN
    }
    try:
        reader.follow(call, names | dict.fromkeys(_GIVEN, _SOMETHING))
    except _CallFails as failure:
        return failure.name
    return None


@lru_cache(maxsize=256)
def reads_argument(facts: PipelineFacts, name: str) -> bool:
    """Whether the call does more with an argument than to ask whether it is None."""
    call = facts.method("__call__")
    if call is None:
        return True
    tested = {
        id(node.left)
        for node in ast.walk(call)
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot)
    }
    return any(
        node.id == name and isinstance(node.ctx, ast.Load) and id(node) not in tested
        for node in ast.walk(call)
        if isinstance(node, ast.Name)
    )


def _of_default(name: str, default: object) -> object:
    if default is None:
        return _Missing(name)
    return default if isinstance(default, bool) else _UNKNOWN


class _CallReader:
    """Follows a function for as long as its source decides the way."""

    def __init__(self, method: Callable[[str], ast.FunctionDef | None]) -> None:
        self._method = method
        self._depth = 0

    def follow(self, function: ast.FunctionDef, names: _Names) -> object:
        """The value that the function returns. Raises _CallFails."""
        try:
            self._run(function.body, names)
        except _CallReturns as returned:
            return returned.value
        return _Missing()

    def _run(self, body: Sequence[ast.stmt], names: _Names) -> None:
        for statement in body:
            self._step(statement, names)

    def _step(self, statement: ast.stmt, names: _Names) -> None:
        match statement:
            case ast.If():
                self._branch(statement, names)
            case ast.Raise():
                raise _CallFails("")
            case ast.Return():
                value = self._value(statement.value, names) if statement.value else _Missing()
                raise _CallReturns(value)
            case ast.Assert():
                if _truth(self._value(statement.test, names)) is False:
                    raise _CallFails(_tested_input(statement.test, names))
            case ast.Assign(targets=[ast.Name(id=name)]):
                names[name] = self._value(statement.value, names)
            case ast.With():
                self._run(statement.body, names)
            case ast.For():
                _refuse_missing(self._value(statement.iter, names))
                self._forget(statement, names)
            case ast.While() | ast.Try():
                self._forget(statement, names)
            case _ if not isinstance(statement, _UNREAD):
                for child in ast.iter_child_nodes(statement):
                    if isinstance(child, ast.expr):
                        self._value(child, names)
                self._forget(statement, names)

    def _branch(self, statement: ast.If, names: _Names) -> None:
        truth = _truth(self._value(statement.test, names))
        if truth is None:
            self._run_both(statement, names)
            return
        try:
            self._run(statement.body if truth else statement.orelse, names)
        except _CallFails as failure:
            raise _CallFails(failure.name or _tested_input(statement.test, names)) from failure

    def _run_both(self, statement: ast.If, names: _Names) -> None:
        """Follow both ways: the function fails, or returns, only if it does so on both."""
        ends: list[_CallFails | _CallReturns] = []
        left: list[_Names] = []
        for body in (statement.body, statement.orelse):
            own = dict(names)
            try:
                self._run(body, own)
            except (_CallFails, _CallReturns) as end:
                ends.append(end)
            else:
                left.append(own)
        if not left:
            returns = next((end for end in ends if isinstance(end, _CallReturns)), None)
            raise _CallReturns(_UNKNOWN) if returns else ends[0]
        for name in {name for own in left for name in own}:
            values = [own.get(name, _UNKNOWN) for own in left]
            names[name] = values[0] if values.count(values[0]) == len(values) else _UNKNOWN

    def _forget(self, statement: ast.stmt, names: _Names) -> None:
        """Take what a statement assigns as unknown."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names[node.id] = _UNKNOWN

    def _value(self, expression: ast.expr, names: _Names) -> object:
        match expression:
            case ast.Name(id=name):
                return names.get(name, _UNKNOWN)
            case ast.Constant(value=None):
                return _Missing()
            case ast.Constant(value=bool() as value):
                return value
            case ast.Constant() | ast.JoinedStr():
                return _SOMETHING
            case ast.Attribute(value=inner) | ast.Starred(value=inner):
                _refuse_missing(self._value(inner, names))
                return _UNKNOWN
            case ast.Subscript():
                _refuse_missing(self._value(expression.value, names))
                return _UNKNOWN
            case ast.UnaryOp(op=ast.Not()):
                truth = _truth(self._value(expression.operand, names))
                return _UNKNOWN if truth is None else not truth
            case ast.BoolOp():
                return self._joined(expression, names)
            case ast.Compare():
                return self._compared(expression, names)
            case ast.IfExp():
                return self._either(expression, names)
            case ast.Call():
                return self._called(expression, names)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                _refuse_missing(self._value(expression.generators[0].iter, names))
                return _SOMETHING
            case ast.Lambda():
                return _SOMETHING
        for child in ast.iter_child_nodes(expression):
            if isinstance(child, ast.expr):
                self._value(child, names)
        is_literal = isinstance(expression, ast.List | ast.Tuple | ast.Dict)
        return _SOMETHING if is_literal else _UNKNOWN

    def _joined(self, expression: ast.BoolOp, names: _Names) -> object:
        """The value of `and` and `or`: parts after an unknown one may not run."""
        decisive, certain = isinstance(expression.op, ast.Or), True
        last: object = _UNKNOWN
        for part in expression.values:
            try:
                last = self._value(part, names)
            except _CallFails:
                if certain:
                    raise
                return _UNKNOWN
            truth = _truth(last)
            if truth is decisive:
                return last if certain else decisive
            certain = certain and truth is not None
        return last if certain else _UNKNOWN

    def _compared(self, expression: ast.Compare, names: _Names) -> object:
        values = [self._value(part, names) for part in (expression.left, *expression.comparators)]
        operator = expression.ops[0]
        if isinstance(operator, ast.Is | ast.IsNot) and isinstance(values[1], _Missing):
            if values[0] is _UNKNOWN:
                return _UNKNOWN
            return isinstance(values[0], _Missing) == isinstance(operator, ast.Is)
        if isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE):
            for value in values:
                _refuse_missing(value)
        if isinstance(operator, ast.In | ast.NotIn):
            _refuse_missing(values[1])
        return _UNKNOWN

    def _either(self, expression: ast.IfExp, names: _Names) -> object:
        truth = _truth(self._value(expression.test, names))
        if truth is not None:
            return self._value(expression.body if truth else expression.orelse, names)
        failures = []
        for part in (expression.body, expression.orelse):
            try:
                self._value(part, names)
            except _CallFails as failure:
                failures.append(failure)
        if len(failures) == 2:  # noqa: PLR2004 - both
            raise failures[0]
        return _UNKNOWN

    def _called(self, call: ast.Call, names: _Names) -> object:
        positional = [self._value(argument, names) for argument in call.args]
        keywords = {each.arg: self._value(each.value, names) for each in call.keywords}
        match call.func:
            case ast.Name(id="isinstance") if positional and isinstance(positional[0], _Missing):
                return "None" in ast.unparse(call.args[1]) and _UNKNOWN
            case ast.Name(id=name) if name in _READING_FUNCTIONS:
                for value in positional[:1]:
                    _refuse_missing(value)
            case ast.Attribute(value=ast.Name(id="self"), attr=attribute):
                return self._descend(attribute, positional, keywords)
            case ast.Attribute(attr=attribute) if attribute in _READING_METHODS:
                self._value(call.func, names)
                for value in [*positional, *keywords.values()][:1]:
                    _refuse_missing(value)
            case ast.Attribute():
                self._value(call.func, names)
        return _UNKNOWN

    def _descend(
        self, name: str, positional: list[object], keywords: Mapping[str | None, object]
    ) -> object:
        """The value of a call of one of the pipeline's own methods."""
        function = self._method(name)
        if function is None or self._depth == _MAX_DEPTH or None in keywords:
            return _UNKNOWN
        parameters = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
        is_static = any("staticmethod" in ast.unparse(d) for d in function.decorator_list)
        names: _Names = dict.fromkeys(_parameters_of(function), _UNKNOWN)
        names |= dict(zip(parameters if is_static else parameters[1:], positional, strict=False))
        names |= {key: value for key, value in keywords.items() if key}
        self._depth += 1
        try:
            return self.follow(function, names)
        finally:
            self._depth -= 1


def _parameters_of(function: ast.FunctionDef) -> list[str]:
    given = function.args
    return [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def _truth(value: object) -> bool | None:
    """Whether a value is true; `None` if that is not known."""
    if isinstance(value, _Missing):
        return False
    return value if isinstance(value, bool) else None


def _refuse_missing(value: object) -> None:
    """Raise _CallFails for the use of an input that is not given."""
    if isinstance(value, _Missing) and value.name:
        raise _CallFails(value.name)


def _tested_input(test: ast.expr, names: _Names) -> str:
    """The input that is not given and that a condition asks for; empty if there is none."""
    asked = [names.get(node.id) for node in ast.walk(test) if isinstance(node, ast.Name)]
    found = (value.name for value in asked if isinstance(value, _Missing))
    return next((name for name in found if name), "")
