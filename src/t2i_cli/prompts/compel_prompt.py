"""Checks prompts in compel's syntax: `(word)1.3`, `word++`, `("a", "b").blend(0.7, 0.3)`."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from t2i_cli.errors import InputError
from t2i_cli.prompts.weighted_prompt import check_weight

_NAME = "compel"
_MODULE = "t2i_cli_compel_parser"
_MAX_BRACKETS = 100
"""Brackets and quotation marks; compel's parser takes long for many."""
_MAX_DEPTH = 10


def compel_is_installed() -> bool:
    """Whether compel can be imported, with the parser that it needs."""
    return all(importlib.util.find_spec(name) is not None for name in (_NAME, "pyparsing"))


def check_compel_prompt(text: str, field: str = "prompt") -> None:
    """Raise InputError for a prompt that compel cannot read, or of which it would ignore a part.

    Nothing is checked where compel is not installed.
    """
    if compel_is_installed():
        parse_compel_prompt(text, field, _parser_module())


def parse_compel_prompt(text: str, field: str, parser: ModuleType) -> Any:  # noqa: ANN401
    """The prompt as a Conjunction of compel's module `parser`. Raises InputError."""
    _check_size(text, field)
    import pyparsing

    # Without it, each further pair of brackets takes five times as long.
    pyparsing.ParserElement.enable_packrat(None)
    label = field.replace("_", " ")
    try:
        found = _prompt_parser(parser).parse_conjunction(text)
    except (
        parser.PromptParser.ParsingException,
        pyparsing.ParseBaseException,
        ValueError,
    ) as error:
        raise InputError(f"compel cannot read the {label}: {error}.", field=field) from error
    if found.lora_weights:
        raise InputError(
            f"The {label} has withLora, which compel leaves out; --lora takes a LoRA.", field=field
        )
    for prompt in found.prompts:
        weights = getattr(prompt, "weights", None)
        if weights and prompt.normalize_weights and not sum(weights):
            raise InputError(f"The weights of a blend in the {label} sum up to 0.", field=field)
        for each in getattr(prompt, "prompts", [prompt]):
            if each.wants_cross_attention_control:
                raise InputError(
                    f"The {label} has .swap, which compel does not do in diffusers' pipelines.",
                    field=field,
                )
            for fragment in each.children:
                check_weight(fragment.weight, field)
    return found


def _check_size(text: str, field: str) -> None:
    depth = deepest = brackets = 0
    for before, character in zip(f" {text}", text, strict=False):
        if before != "\\" and character in '()"':
            brackets += 1
            depth += {"(": 1, ")": -1}.get(character, 0)
            deepest = max(deepest, depth)
    if brackets > _MAX_BRACKETS or deepest > _MAX_DEPTH:
        raise InputError(
            f"The {field.replace('_', ' ')} has more brackets and quotation marks than compel can "
            f"read soon: at most {_MAX_BRACKETS}, and {_MAX_DEPTH} in each other.",
            field=field,
        )


@cache
def _prompt_parser(parser: ModuleType) -> Any:  # noqa: ANN401 - compel has no types
    return parser.PromptParser()


@cache
def _parser_module() -> ModuleType:
    """compel's parser, without its package, which imports torch and diffusers."""
    package = importlib.util.find_spec(_NAME)
    assert package is not None  # noqa: S101 - compel_is_installed()
    folders = list(package.submodule_search_locations or ())
    spec = importlib.util.spec_from_file_location(_MODULE, Path(folders[0], "prompt_parser.py"))
    assert spec is not None and spec.loader is not None  # noqa: S101 - a file's name was given
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module
