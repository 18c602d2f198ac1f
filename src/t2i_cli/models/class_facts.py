"""What t2i asks of the libraries' classes before it loads them: signatures, methods, kinds.

Answered from the source without an import where that proves the answer, else by the class itself.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from inspect import Parameter
from typing import cast

from t2i_cli.models import libraries, library_source, transformers_source
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.library_source import SourceClass

SignatureParameters = Mapping[str, Parameter]

REFUSED_BASES = {"DiffusionPipeline", "OnnxRuntimeModel"}
"""Base classes that diffusers would also load as components: whole pipelines, whose own
model_index.json is not checked here, and ONNX networks, which are not safetensors."""
_NETWORK_BASES = {"ModelMixin", "PreTrainedModel"}
"""Base classes of components with weights; all others are loaded from configs alone."""
_LOADING = "diffusers.pipelines.pipeline_loading_utils"
_TRANSPARENT_DECORATORS = {
    "no_grad",
    "inference_mode",
    "replace_example_docstring",
    "register_to_config",
}
"""Decorators of the libraries that keep a function's signature."""


_COMPUTED = object()
"""A default that the source does not spell out."""
_READ_DEFAULTS = {
    *("num_inference_steps", "height", "width", "negative_prompt"),
    *("guidance_scale", "true_cfg_scale", "is_distilled", "guidance_embeds"),
}
"""SignatureParameters whose default values t2i reads; of others it asks whether there is one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PipelineFacts:
    """A pipeline class: the parameters of its call and constructor, and its optional components.

    `method` gives the source of one of its methods, `None` if it has none. There is one object for
    each class, so that what follows from its source is kept by it.
    """

    name: str
    module: str
    call: SignatureParameters
    init: SignatureParameters
    optional_components: frozenset[str]
    method: Callable[[str], ast.FunctionDef | None]


@lru_cache(maxsize=64)
def facts_of_name(name: str) -> PipelineFacts:
    """The facts of a pipeline class of diffusers. Raises ModelError if there is none."""
    found = _pipeline_from_source(name) if library_source.is_readable() else None
    return found or facts_of_class(libraries.import_pipeline_class(name))


@lru_cache(maxsize=64)
def facts_of_class(cls: LibraryObject) -> PipelineFacts:
    """The facts of an imported pipeline class."""
    return PipelineFacts(
        name=cls.__name__,
        module=cls.__module__,
        call=inspect.signature(cls.__call__).parameters,
        init=inspect.signature(cls.__init__).parameters,
        optional_components=frozenset(cls._optional_components),
        method=cache(lambda name: _imported_method(cls, name)),
    )


def _imported_method(cls: LibraryObject, name: str) -> ast.FunctionDef | None:
    try:
        source = inspect.getsource(inspect.unwrap(getattr(cls, name)))
        node = ast.parse(textwrap.dedent(source)).body[0]
    except (AttributeError, OSError, TypeError, SyntaxError):
        return None
    return node if isinstance(node, ast.FunctionDef) else None


def constructor_parameters(name: str) -> SignatureParameters:
    """The parameters of a diffusers class's constructor; none for a name that diffusers lacks."""
    if library_source.is_readable() and (found := library_source.find_class("diffusers", name)):
        parameters = _method_parameters(found, "__init__")
        if parameters is not None:
            return parameters
    cls = getattr(libraries.import_diffusers(), name, object)
    return inspect.signature(cls).parameters


def has_method(name: str, method: str) -> bool:
    """Whether a class of diffusers has a method."""
    if library_source.is_readable() and (found := library_source.find_class("diffusers", name)):
        if library_source.find_attribute(found, method):
            return True
        if library_source.ancestors(found):
            return False
    return hasattr(getattr(libraries.import_diffusers(), name, None), method)


def is_known_component(library: str, name: str) -> bool:
    """Whether the source proves that a class can be a component of a pipeline and be imported."""
    found = component_class(library, name)
    path = library_source.path_to_base(found, _component_bases()) if found else None
    if path is None:
        return False
    return not any(library_source.missing_imports(each.module) for each in path)


def component_class(library: str, name: str) -> SourceClass | None:
    """The class of a component in the libraries' source, `None` if it is not known."""
    if library == "transformers":
        return transformers_source.find_model_class(name)
    if library == "diffusers":
        return library_source.find_class("diffusers", name)
    if is_pipeline_package(library):
        return library_source.find_class(f"diffusers.pipelines.{library}", name)
    return None


@cache
def text_to_image_class(name: str) -> str:
    """The class that makes images from text of the weights of another one, or the class itself.

    By diffusers' own lists of AutoPipelineForText2Image and its siblings for given images.
    """
    made = _auto_classes("AUTO_TEXT2IMAGE_PIPELINES_MAPPING")
    if name in made.values():
        return name
    for task in ("IMAGE2IMAGE", "INPAINT"):
        for key, each in _auto_classes(f"AUTO_{task}_PIPELINES_MAPPING").items():
            if each == name:
                return made.get(key, name)
    return name


def _auto_classes(mapping: str) -> dict[str, str]:
    """The names of the classes in one of diffusers' lists, by their keys there."""
    module = library_source.read_module("diffusers.pipelines.auto_pipeline")
    found: dict[str, str] = {}
    for node in ast.walk(module.tree) if module else ():
        if not isinstance(node, ast.Assign):
            continue
        target = node.targets[0]
        if ast.unparse(target) == mapping:
            pairs = [each.elts for each in ast.walk(node.value) if isinstance(each, ast.Tuple)]
            found |= {ast.literal_eval(key): ast.unparse(cls) for key, cls in pairs}
        elif isinstance(target, ast.Subscript) and ast.unparse(target.value) == mapping:
            # Those that need another package.
            found[ast.literal_eval(target.slice)] = ast.unparse(node.value)
    return found


def library_ancestry(cls: SourceClass) -> list[SourceClass]:
    """The class and its bases up to the libraries' own base of its kind; itself if not known."""
    pipeline = library_source.find_class("diffusers", "DiffusionPipeline")
    bases = _component_bases() | frozenset([pipeline.key] if pipeline else [])
    return library_source.path_to_base(cls, bases) or [cls]


def is_pipeline_package(library: str) -> bool:
    """Whether the source proves that it is a package of diffusers.pipelines."""
    return library_source.imports_from("diffusers.pipelines", library)


def is_network(library: str, name: str) -> bool | None:
    """Whether a component's class has weights, by the base class that it has; `None` if unknown."""
    if not isinstance(library, str) or not isinstance(name, str):
        return None
    found = component_class(library, name)
    if found is None:
        return None
    networks = frozenset(key for key in _component_bases() if key[1] in _NETWORK_BASES)
    if library_source.path_to_base(found, networks) is not None:
        return True
    return None if library_source.path_to_base(found, _component_bases()) is None else False


@cache
def _component_bases() -> frozenset[tuple[str, str]]:
    """The keys of the base classes of components, which diffusers lists."""
    try:
        listed = library_source.constant(_LOADING, "LOADABLE_CLASSES")
    except ValueError:
        return frozenset()
    found = [
        library_source.find_class(library, name)
        for library in ("diffusers", "transformers")
        for name in (listed.get(library, ()) if isinstance(listed, dict) else ())
        if name not in REFUSED_BASES
    ]
    return frozenset(each.key for each in found if each)


def _pipeline_from_source(name: str) -> PipelineFacts | None:
    found = library_source.find_class("diffusers", name)
    base = library_source.find_class("diffusers", "DiffusionPipeline")
    path = library_source.path_to_base(found, frozenset({base.key})) if found and base else None
    if not found or not path or any(library_source.missing_imports(c.module) for c in path):
        return None
    call, init = (_method_parameters(found, method) for method in ("__call__", "__init__"))
    optional = _literal_attribute(found, "_optional_components")
    if call is None or init is None or not isinstance(optional, list):
        return None
    return PipelineFacts(
        name=found.name,
        module=found.module,
        call=call,
        init=init,
        optional_components=frozenset(optional),
        method=cache(lambda method: _method_of_source(found, method)),
    )


def _method_of_source(cls: SourceClass, name: str) -> ast.FunctionDef | None:
    _, node = library_source.find_attribute(cls, name) or (None, None)
    return node if isinstance(node, ast.FunctionDef) else None


def _literal_attribute(cls: SourceClass, name: str) -> object:
    _, statement = library_source.find_attribute(cls, name) or (None, None)
    value = getattr(statement, "value", None)
    try:
        return ast.literal_eval(value) if isinstance(value, ast.expr) else None
    except ValueError:
        return None


def _method_parameters(cls: SourceClass, method: str) -> SignatureParameters | None:
    """The parameters of a method, as inspect.signature() tells them; `None` if not known."""
    owner, node = library_source.find_attribute(cls, method) or (None, None)
    if owner is None or not isinstance(node, ast.FunctionDef):
        return None
    if not all(map(_is_transparent, node.decorator_list)):
        return None
    given, found = node.args, {}
    positional = [*given.posonlyargs, *given.args]
    absent: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults))
    for kind, arguments, defaults in (
        (Parameter.POSITIONAL_OR_KEYWORD, positional, [*absent, *given.defaults]),
        (Parameter.VAR_POSITIONAL, [given.vararg] if given.vararg else [], [None]),
        (Parameter.KEYWORD_ONLY, given.kwonlyargs, given.kw_defaults),
        (Parameter.VAR_KEYWORD, [given.kwarg] if given.kwarg else [], [None]),
    ):
        for argument, default in zip(arguments, defaults, strict=False):
            name, value = argument.arg, cast(object, Parameter.empty)
            if default is not None:
                value = _default(owner.module, default)
                if value is _COMPUTED and name in _READ_DEFAULTS:
                    return None
            found[name] = Parameter(name, kind, default=value)
    return found


def _default(module: str, expression: ast.expr) -> object:
    """A default's value, `_COMPUTED` if it is no literal."""
    try:
        if isinstance(expression, ast.Name):
            return library_source.constant(module, expression.id)
        return ast.literal_eval(expression)
    except ValueError:
        return _COMPUTED


def _is_transparent(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(called).rpartition(".")[2] in _TRANSPARENT_DECORATORS


@cache
def table_keys(module: str, table: str) -> frozenset[str]:
    """The texts that are keys of a dictionary of a library's module; empty if it is not found."""
    source = library_source.read_module(module)
    for node in source.tree.body if source else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == table:
            keys = node.value.keys if isinstance(node.value, ast.Dict) else ()
            return frozenset(
                key.value
                for key in keys
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            )
    return frozenset()
