"""Checks prompts in compel's syntax: `(word)1.3`, `word++`, `("a", "b").blend(0.7, 0.3)`."""

import importlib.util
import re
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
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
_MAX_WORDS = 500
"""Words that compel's parser is given; it takes about 2 ms for each."""
_NO_SPACE_BEFORE = frozenset(",.;:!?)]}")


def compel_is_installed() -> bool:
    """Whether compel can be imported, with the parser that it needs."""
    return all(importlib.util.find_spec(name) is not None for name in (_NAME, "pyparsing"))


@lru_cache(maxsize=256)
def check_compel_prompt(text: str, field: str = "prompt") -> None:
    """Raise InputError for a prompt that compel cannot read, or of which it would ignore a part.

    Nothing is checked where compel is not installed.
    """
    if compel_is_installed():
        compel_texts(text, field)


@lru_cache(maxsize=256)
def compel_texts(text: str, field: str = "prompt") -> tuple[str, ...]:
    """The words of a prompt without weights, of each part that is encoded on its own."""
    found = parse_compel_prompt(text, field, _parser_module())
    flats = [flat for one in found.prompts for flat in getattr(one, "prompts", [one])]
    return tuple("".join(with_spaces([part.text for part in each.children])) for each in flats)


def with_spaces(parts: Sequence[str]) -> list[str]:
    """Parts of a text with the spaces between them, which compel's parser takes away."""
    return [
        part if not place or part[:1] in _NO_SPACE_BEFORE else f" {part}"
        for place, part in enumerate(parts)
    ]


def parse_compel_prompt(text: str, field: str, parser: ModuleType) -> Any:  # noqa: ANN401
    """The prompt as a Conjunction of compel's module `parser`. Raises InputError."""
    _check_size(text, field)
    import pyparsing

    # Without it, each further pair of brackets takes five times as long.
    pyparsing.ParserElement.enable_packrat(None)
    label = field.replace("_", " ")
    shortened, runs = _shorten_runs(text)
    if (count := len(shortened.split())) > _MAX_WORDS:
        raise InputError(
            f"The {label} has more words with signs of compel's syntax, or between them, than "
            f"compel can read soon: {count:,}, and at most {_MAX_WORDS} are taken.",
            field=field,
        )
    try:
        found = _prompt_parser(parser).parse_conjunction(shortened)
    except (
        parser.PromptParser.ParsingException,
        pyparsing.ParseBaseException,
        ValueError,
    ) as error:
        reason = _restored(str(error), runs)
        raise InputError(f"compel cannot read the {label}: {reason}.", field=field) from error
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
                fragment.text = _restored(fragment.text, runs)
                check_weight(fragment.weight, field)
    return found


_SIGNS = r"\s(),.=+\-\"\\"
_WORD = re.compile(rf"[^{_SIGNS}]+(?:[-+][^{_SIGNS}]+)*")
"""A word without syntax; signs between letters are hyphens."""
_BRACKET = re.compile(r'[()"]')
_WORDS = re.compile(r"(\S+)(\s*)")
_TEXT_SIGNS = re.compile("[,.=]+")
_STANDS_FOR = re.compile("\ue000([0-9]+)\ue001")
_MIN_RUN = 4
"""Words that are worth it; the first and the last stay, as operators may stand beside them."""


def _shorten_runs(text: str) -> tuple[str, list[str]]:
    """The text with one word for each long run of words without syntax, and those runs.

    compel's parser takes milliseconds a word, and joins such words by a space.
    """
    # As compel does at first.
    text = re.sub(r",(\S)", r", \1", text)
    if "\ue000" in text:
        return text, []
    found: list[str] = []
    runs: list[str] = []
    run: list[str] = []
    # Commas and full stops are text outside of brackets and quotation marks only.
    outside = True
    for word, space in [*_WORDS.findall(text), ("", "")]:
        outside = outside and _BRACKET.search(word) is None
        parts = _TEXT_SIGNS.split(word) if outside else [word]
        if word and all(not part or _WORD.fullmatch(part) for part in parts):
            run += [word, space]
            # A text in quotation marks ends with its line.
            if not {"\n", "\r"} & set(space):
                continue
            word = space = ""
        if len(run) >= 2 * _MIN_RUN:
            runs.append(" ".join(run[2:-2:2]))
            run[2:-2] = [f"\ue000{len(runs) - 1}\ue001", " "]
        found += [*run, word, space]
        run = []
    return "".join(found), runs


def _restored(text: str, runs: Sequence[str]) -> str:
    """A text with the runs that words stand for."""
    return _STANDS_FOR.sub(lambda match: runs[int(match[1])], text) if runs else text


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
