"""Defer imports of transformers and diffusers that generating an image does not need.

While they are imported and load a model, they mark functions for torch's compiler, ask whether a
network is compiled, check the shapes of meta tensors, and check for distributed training. For that
they import the compiler, sympy and distributed tensors, which takes a fifth of a cold run. Stub
modules answer instead.
"""

import importlib
import importlib.abc
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

_COMPILER = "torch._dynamo"
_MASKS = f"{_COMPILER}._trace_wrapped_higher_order_op"
_SHAPES = "torch.fx.experimental.symbolic_shapes"


@contextmanager
def defer_imports() -> Iterator[None]:
    """Put stub modules in place of torch's compiler and report distributed torch as unavailable.

    Functions that are marked for the compiler in the context stay unmarked. After it, or when a
    stub is asked for an attribute that it lacks, the real modules are imported.
    """
    import torch.distributed as distributed
    from torch.nn import init

    stub_attributes: dict[str, dict[str, Any]] = {
        _COMPILER: {
            "__path__": [],
            **dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), _no_op),
            "eval_frame": SimpleNamespace(OptimizedModule=_NoInstances),
        },
        _MASKS: {"TransformGetItemToIndex": _NoInstances},
        _SHAPES: {name: _ShapeFunction(name) for name in _PLAIN_ANSWERS},
    }
    if {_COMPILER, _MASKS} & sys.modules.keys():
        yield
        return
    stubs = {name: _StubModule(name) for name in stub_attributes.keys() - sys.modules.keys()}
    for name, stub in stubs.items():
        vars(stub).update(stub_attributes[name])
    finder = _SubmoduleFinder()
    is_available, init_normal = distributed.is_available, init._no_grad_normal_

    def init_unless_meta(tensor: Any, *options: Any) -> Any:  # noqa: ANN401 - a tensor
        # Initialising a meta tensor does nothing, but still imports the compiler.
        return tensor if tensor.is_meta else init_normal(tensor, *options)

    with ExitStack() as held:
        held.callback(_remove_stubs)
        held.callback(sys.meta_path.remove, finder)
        held.callback(setattr, distributed, "is_available", is_available)
        held.callback(setattr, init, "_no_grad_normal_", init_normal)
        sys.modules.update(stubs)
        sys.meta_path.insert(0, finder)
        distributed.is_available = lambda: False
        init._no_grad_normal_ = init_unless_meta  # type: ignore[assignment]
        yield


class _StubModule(ModuleType):
    """A stub module, replaced by the real one when an attribute is asked for that it lacks."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of the module
        if name.startswith("__"):
            raise AttributeError(name)
        _remove_stubs()
        return getattr(importlib.import_module(self.__name__), name)


class _SubmoduleFinder(importlib.abc.Loader):
    """Import finder of the compiler's submodules: replaces the stub by the real package first."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """The spec of a submodule of the compiler, which it imports; `None` for other modules."""
        if not name.startswith(f"{_COMPILER}."):
            return None
        if not isinstance(sys.modules.get(_COMPILER), _StubModule):
            return None
        _remove_stubs()
        importlib.import_module(name)
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module, which `find_spec` has imported already."""
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module has been executed by its import."""


class _NoInstances:
    """A class without instances, for isinstance checks; calling it calls the real class."""

    def __new__(cls, *arguments: object) -> Any:  # noqa: ANN401 - an instance of the real class
        _remove_stubs()
        return importlib.import_module(_MASKS).TransformGetItemToIndex(*arguments)


class _ShapeFunction:
    """A function of symbolic shapes that answers for plain values as the real one does.

    Operations on meta tensors call it; the real module, which others need, imports sympy.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *values: Any, **options: Any) -> Any:  # noqa: ANN401 - or symbolic values
        answer = _PLAIN_ANSWERS[self._name](*values)
        if answer is not None:
            return answer
        _remove_stubs()
        return getattr(importlib.import_module(_SHAPES), self._name)(*values, **options)


def _plain_guard(value: object, *_: object) -> bool | None:
    return value if type(value) is bool else None


def _plain_is_nested(value: object) -> bool | None:
    return False if type(value) is int else None


def _plain_equality(one: object, other: object) -> bool | None:
    return one == other if _is_plain_shape(one) and _is_plain_shape(other) else None


def _is_plain_shape(value: object) -> bool:
    return isinstance(value, tuple) and all(type(side) is int for side in value)


_PLAIN_ANSWERS: dict[str, Callable[..., bool | None]] = {
    "expect_true": _plain_guard,
    "guard_or_false": _plain_guard,
    "guard_or_true": _plain_guard,
    "guard_size_oblivious": _plain_guard,
    "is_nested_int": _plain_is_nested,
    "sym_eq": _plain_equality,
}
"""Answers of functions of symbolic shapes for plain values; `None` for others."""


def _remove_stubs() -> None:
    for name in (_COMPILER, _MASKS, _SHAPES):
        if isinstance(sys.modules.get(name), _StubModule):
            del sys.modules[name]


def _no_op(function: Any = None, *_: object, **__: object) -> Any:  # noqa: ANN401 - a decorator
    return (lambda given: given) if function is None else function
