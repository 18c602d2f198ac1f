"""Follow the source of a pipeline's call, to tell before a load whether a scheduler serves it.

Nothing is run or imported. Where a condition is not known both branches are followed, and a branch
that fails is left out: only what fails on every path is refused.
"""

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field

from t2i_cli.models import library_source
from t2i_cli.models.library_source import SourceClass
from t2i_cli.models.source_values import (
    PRESENT,
    UNKNOWN,
    BlockResult,
    ConfigValue,
    PipelineValue,
    SchedulerValue,
    SourceValue,
    UnfitScheduler,
    bind_names,
    compared,
    find_function,
    joined,
    literal_defaults,
    mentions_scheduler,
    merged,
    method_parameters,
    raised_message,
    returned_kind,
    truth,
)

_MAX_DEPTH = 6
"""Calls within calls that are followed."""
_TENSOR_MODULES = {"np", "torch", "math"}

_Environment = dict[str, SourceValue]


@dataclass
class SourceFrame:
    """One function that is followed, in a module; `inside` is whether it is the scheduler's own."""

    module: str
    names: _Environment
    depth: int = 0
    inside: bool = False
    returned: list[SourceValue] = field(default_factory=list)

    def run(self, function: ast.FunctionDef) -> SourceValue:
        """What the function returns. Raises UnfitScheduler."""
        result = self._block(function.body)
        return merged([*self.returned, result.value])

    # Statements

    def _block(self, statements: Sequence[ast.stmt]) -> BlockResult:
        for statement in statements:
            result = self._statement(statement)
            if result.ended:
                return result
        return BlockResult()

    def _statement(self, node: ast.stmt) -> BlockResult:
        match node:
            case ast.Return():
                return BlockResult(True, self.value(node.value) if node.value else None)
            case ast.Raise():
                raise UnfitScheduler(raised_message(node))
            case ast.Assert(test=test):
                if truth(self.value(test)) is False:
                    raise UnfitScheduler("it does not take the settings of the model's own")
            case ast.Assign(targets=targets, value=given):
                found = self.value(given)
                for target in targets:
                    bind_names(self.names, target, found)
            case ast.AnnAssign(target=target, value=given) if given is not None:
                bind_names(self.names, target, self.value(given))
            case ast.AugAssign(target=target, value=given):
                self.value(given)
                bind_names(self.names, target, PRESENT)
            case ast.Expr(value=given):
                self.value(given)
            case ast.If():
                return self._branch(node)
            case ast.With():
                return self._block(node.body)
            case ast.For() | ast.While() | ast.Try():
                self._perhaps(node)
            case _:
                pass
        return BlockResult()

    def _branch(self, node: ast.If) -> BlockResult:
        known = truth(self.value(node.test))
        if known is not None:
            return self._block(node.body if known else node.orelse)
        before, open_ends, failures = dict(self.names), [], []
        for block in (node.body, node.orelse):
            self.names = dict(before)
            try:
                result = self._block(block)
            except UnfitScheduler as failure:
                failures.append(failure)
                continue
            if result.ended:
                self.returned.append(result.value)
            else:
                open_ends.append(self.names)
        if len(failures) == 2:
            raise failures[0]
        self.names = joined(open_ends) if open_ends else before
        # Where both branches return, what follows is not reached.
        return BlockResult() if open_ends else BlockResult(True, self.returned.pop())

    def _perhaps(self, node: ast.For | ast.While | ast.Try) -> None:
        """A block that may not be run, or whose failure is caught; the denoising loop surely is."""
        before = dict(self.names)
        surely = isinstance(node, ast.For) and "timesteps" in ast.unparse(node.iter)
        if isinstance(node, ast.For):
            self.value(node.iter)
            bind_names(self.names, node.target, PRESENT if surely else UNKNOWN)
        try:
            self._block(node.body)
        except UnfitScheduler:
            if surely:
                raise
        self.names = joined([before, self.names])

    # Expressions

    def value(self, node: ast.expr) -> SourceValue:
        """The abstract value of an expression. Raises UnfitScheduler."""
        match node:
            case ast.Constant(value=constant):
                return constant
            case ast.Name(id=name):
                return self.names.get(name, UNKNOWN)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Call():
                return self._call(node)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                known = truth(self.value(test))
                if known is None:
                    return merged([self.value(body), self.value(orelse)])
                return self.value(body if known else orelse)
            case ast.BoolOp():
                return self._logic(node)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                known = truth(self.value(operand))
                return UNKNOWN if known is None else not known
            case ast.Compare(left=left, ops=[operator], comparators=[right]):
                return compared(operator, self.value(left), self.value(right))
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                return tuple(map(self.value, elements))
            case ast.Dict(keys=keys, values=values):
                return {
                    key.value: self.value(each)
                    for key, each in zip(keys, values, strict=True)
                    if isinstance(key, ast.Constant)
                }
            case ast.Subscript(value=whole, slice=part):
                base = self.value(whole)
                if isinstance(base, ConfigValue) and isinstance(part, ast.Constant):
                    return base.entry(part.value)
                return PRESENT if base is PRESENT and isinstance(part, ast.Slice) else UNKNOWN
            case ast.BinOp(left=left, right=right):
                list(map(self.value, (left, right)))
                return PRESENT
        return UNKNOWN

    def _logic(self, node: ast.BoolOp) -> SourceValue:
        decisive = isinstance(node.op, ast.Or)
        unknown = False
        last: SourceValue = UNKNOWN
        for each in node.values:
            try:
                last = self.value(each)
            except UnfitScheduler:
                if not unknown:
                    raise
                return UNKNOWN
            known = truth(last)
            if known is decisive:
                return UNKNOWN if unknown and decisive is False else last
            unknown = unknown or known is None
        return UNKNOWN if unknown else last

    def _attribute(self, node: ast.Attribute) -> SourceValue:
        base, name = self.value(node.value), node.attr
        if isinstance(base, PipelineValue):
            return base.scheduler if name == "scheduler" else UNKNOWN
        if isinstance(base, SchedulerValue):
            if name == "config":
                return ConfigValue(base.config)
            if not self._has(base, name):
                raise UnfitScheduler(f"{base.cls.name} has no {name}")
            return UNKNOWN
        if isinstance(base, ConfigValue):
            return base.entry(name)
        return base if isinstance(base, frozenset) and name == "parameters" else UNKNOWN

    def _has(self, base: SchedulerValue, name: str) -> bool:
        """Whether the scheduler has an attribute; its own code surely sets those it reads."""
        return self.inside or name in base.members or name.startswith("__")

    # Calls

    def _call(self, node: ast.Call) -> SourceValue:
        function = node.func
        if isinstance(function, ast.Name):
            return self._named_call(function.id, node)
        if not isinstance(function, ast.Attribute):
            return UNKNOWN
        if ast.unparse(function) == "inspect.signature":
            return self._signature(node.args[0])
        base, name = self.value(function.value), function.attr
        if isinstance(base, SchedulerValue):
            if not self._has(base, name):
                raise UnfitScheduler(f"{base.cls.name} has no {name}")
            return self._method(base, base.cls, name, node)
        if isinstance(base, PipelineValue):
            return self._method(base, base.cls, name, node)
        arguments = [self.value(each) for each in node.args]
        if isinstance(base, ConfigValue) and name == "get" and isinstance(arguments[0], str):
            return base.get(arguments[0], arguments[1] if len(arguments) > 1 else None)
        if isinstance(base, frozenset) and name == "keys":
            return base
        is_tensor = isinstance(function.value, ast.Name) and function.value.id in _TENSOR_MODULES
        return PRESENT if base is PRESENT or is_tensor else UNKNOWN

    def _signature(self, node: ast.expr) -> SourceValue:
        base = self.value(node.value) if isinstance(node, ast.Attribute) else UNKNOWN
        if isinstance(base, SchedulerValue) and isinstance(node, ast.Attribute):
            return method_parameters(base.cls, node.attr)
        return UNKNOWN

    def _named_call(self, name: str, node: ast.Call) -> SourceValue:
        arguments = [self.value(each) for each in node.args]
        first = arguments[0] if arguments else UNKNOWN
        if name in {"hasattr", "getattr"} and isinstance(first, SchedulerValue | ConfigValue):
            held = first.members if isinstance(first, SchedulerValue) else frozenset(first)
            asked = arguments[1] if len(arguments) > 1 else None
            if name == "hasattr":
                return asked in held | {"config"} if isinstance(asked, str) else UNKNOWN
            return UNKNOWN
        if name == "isinstance" and isinstance(first, SchedulerValue):
            wanted = {each.id for each in ast.walk(node.args[1]) if isinstance(each, ast.Name)}
            return bool(wanted & {each.name for each in first.ancestors})
        if name in {"set", "list"} and isinstance(first, frozenset):
            return first
        owner, function = find_function(self.module, name) or (self.module, None)
        if function is None:
            return UNKNOWN
        if not mentions_scheduler(function):
            return returned_kind(function)
        return self._follow(owner, function, node, {})

    def _method(
        self, base: PipelineValue | SchedulerValue, cls: SourceClass, name: str, node: ast.Call
    ) -> SourceValue:
        owner, function = library_source.find_attribute(cls, name) or (None, None)
        is_method = owner and isinstance(function, ast.FunctionDef)
        if not is_method or not isinstance(function, ast.FunctionDef) or owner is None:
            return UNKNOWN
        inside = isinstance(base, SchedulerValue)
        if not inside and not mentions_scheduler(function):
            return UNKNOWN
        if any(ast.unparse(each) == "staticmethod" for each in function.decorator_list):
            return self._follow(owner.module, function, node, {}, inside=inside)
        itself = function.args.args[0].arg
        return self._follow(owner.module, function, node, {itself: base}, inside=inside)

    def _follow(
        self,
        module: str,
        function: ast.FunctionDef,
        node: ast.Call,
        bound: _Environment,
        inside: bool = False,
    ) -> SourceValue:
        if self.depth >= _MAX_DEPTH:
            return UNKNOWN
        names = self._arguments(function, node, bound, strict=inside and not self.inside)
        frame = SourceFrame(module, names, self.depth + 1, self.inside or inside)
        return frame.run(function)

    def _arguments(
        self, function: ast.FunctionDef, node: ast.Call, bound: _Environment, *, strict: bool
    ) -> _Environment:
        """The names that a call gives values; with `strict`, those that do not fit are refused."""
        positional = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
        free = positional[len(bound) :]
        given: _Environment = {}
        loose = any(isinstance(each, ast.Starred) for each in node.args)
        if not loose:
            given |= dict(zip(free, map(self.value, node.args), strict=False))
        for keyword in node.keywords:
            found = self.value(keyword.value)
            if keyword.arg:
                given[keyword.arg] = found
            elif isinstance(found, dict):
                given |= found
            else:
                loose = True
        known = {*positional, *(each.arg for each in function.args.kwonlyargs)}
        if strict and not function.args.kwarg and (extra := sorted(given.keys() - known)):
            raise UnfitScheduler(f"its {function.name} takes no {extra[0]}")
        defaults = dict(literal_defaults(function))
        missing = [name for name in free if name not in given and name not in defaults]
        if strict and missing and not loose:
            raise UnfitScheduler(f"its {function.name} needs {missing[0]}")
        names = dict.fromkeys(known, UNKNOWN) | ({} if loose else defaults) | bound
        if function.args.kwarg:
            rest = {name: each for name, each in given.items() if name not in known}
            names[function.args.kwarg.arg] = UNKNOWN if loose else rest
        return names | {name: each for name, each in given.items() if name in known}
