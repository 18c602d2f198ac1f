"""Puts off what transformers and diffusers import and an image never needs.

While they are imported and load a model they mark functions for torch's compiler, ask whether a
network is compiled, and look for the tools of training on many devices. For answers as simple as
these they import the compiler, sympy and distributed tensors: a seventh of a cold run.
"""

import importlib
import importlib.abc
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

_COMPILER = "torch._dynamo"
_MASKS = f"{_COMPILER}._trace_wrapped_higher_order_op"


@contextmanager
def defer_imports() -> Iterator[None]:
    """In this context, stand-ins answer for those modules as long as their answers will do.

    Functions marked here stay unmarked. Outside, or asked for more, the true modules are imported.
    """
    import torch.distributed as distributed
    from torch.nn import init

    answers: dict[str, dict[str, Any]] = {
        _COMPILER: {
            "__path__": [],
            **dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), _unmarked),
            "eval_frame": SimpleNamespace(OptimizedModule=_Never),
        },
        _MASKS: {"TransformGetItemToIndex": _Never},
    }
    if answers.keys() & sys.modules.keys():
        yield
        return
    stand_ins = {name: _StandIn(name) for name in answers}
    for name, stand_in in stand_ins.items():
        vars(stand_in).update(answers[name])
    finder, available, draw = _Submodules(), distributed.is_available, init._no_grad_normal_

    def draw_unless_empty(tensor: Any, *how: Any) -> Any:  # noqa: ANN401 - a tensor
        # Where a tensor has no memory, even drawing nothing goes through the compiler.
        return tensor if tensor.is_meta else draw(tensor, *how)

    with ExitStack() as held:
        held.callback(_make_way)
        held.callback(sys.meta_path.remove, finder)
        held.callback(setattr, distributed, "is_available", available)
        held.callback(setattr, init, "_no_grad_normal_", draw)
        sys.modules.update(stand_ins)
        sys.meta_path.insert(0, finder)
        distributed.is_available = lambda: False
        init._no_grad_normal_ = draw_unless_empty  # type: ignore[assignment]
        yield


class _StandIn(ModuleType):
    """A module that makes way for the true one when it is asked for what it lacks."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the module holds
        if name.startswith("__"):
            raise AttributeError(name)
        _make_way()
        return getattr(importlib.import_module(self.__name__), name)


class _Submodules(importlib.abc.Loader):
    """Finds the compiler's submodules behind its stand-in, which makes way for the true one."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """As a finder: the spec of a submodule, imported already."""
        if not name.startswith(f"{_COMPILER}."):
            return None
        if not isinstance(sys.modules.get(_COMPILER), _StandIn):
            return None
        _make_way()
        importlib.import_module(name)
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """As a loader: the module that is there."""
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed."""


class _Never:
    """No object is one of these; asked for one, the true class makes it."""

    def __new__(cls, *arguments: object) -> Any:  # noqa: ANN401 - of the true class
        _make_way()
        return importlib.import_module(_MASKS).TransformGetItemToIndex(*arguments)


def _make_way() -> None:
    for name in (_COMPILER, _MASKS):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


def _unmarked(function: Any = None, *_: object, **__: object) -> Any:  # noqa: ANN401 - a decorator
    return (lambda given: given) if function is None else function
