"""Tells of syntax of other programs that stands in a prompt as words, as `(word:1.3)`."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from t2i_cli.prompts.wildcards import WILDCARD
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_field import MAX_PROMPT

_CHARACTERS = re.compile(r"[{(\[<]|__|--|BREAK|AND")
"""What every kind of syntax has: most prompts have none of it, and are not looked at again."""


@dataclass(frozen=True)
class _Syntax:
    pattern: re.Pattern[str]
    meaning: str
    is_weight: bool = False


# Each pattern takes linear time: no part of it can match in two ways.
_ALTERNATIVES = _Syntax(
    re.compile(r"\{[^{}|]*\|[^{}]*\}"),
    "is read as it stands; `t2i batch` makes an image of each alternative of a text file's prompts",
)
_SYNTAXES = (
    _Syntax(WILDCARD, "is read as words; with --wildcards DIR it is a value of a file there"),
    _Syntax(
        re.compile(r"<(?:lora|lyco):[^<>]*>", re.IGNORECASE),
        "is read as words; with --lora-dir DIR it is a LoRA of that folder",
    ),
    _Syntax(
        re.compile(r"<(?:hypernet|embedding):[^<>]*>", re.IGNORECASE),
        "is read as words; --lora and --embedding name networks",
    ),
    _Syntax(
        # Not (at 10:30), which is a time.
        re.compile(
            r"\([^():]*(?:[^():0-9]:\s*[-+]?[0-9.]+|:\s*[-+]?[0-9]*\.[0-9]+)\s*\)|\(\([^()]+\)\)"
        ),
        "is read as words; --prompt-syntax a1111 reads weights",
        is_weight=True,
    ),
    _Syntax(
        # As whole words between others: not a text in capital letters.
        re.compile(r"(?<![A-Z] )\b(?:BREAK|AND)\b(?! [A-Z]{2})"),
        "is read as a word: t2i does not divide prompts",
    ),
    _Syntax(
        re.compile(r"\[[^\[\]|]*\|[^\[\]]*\]"),
        "is read as words: t2i changes no prompt between steps",
    ),
    _Syntax(
        # Not [at 10:30].
        re.compile(r"\[[^\[\]|]*:(?:[^\[\]:|]*:\s*[0-9.]+|\s*[0-9]*\.[0-9]+)\s*\]"),
        "is read as words: t2i changes no prompt between steps",
    ),
    _Syntax(
        re.compile(r"(?<!\S)--[A-Za-z][\w-]*"),
        "is read as a word: a line of options begins with --prompt, in a text file",
    ),
)


def literal_syntax_notes(
    requests: Collection[ResolvedRequest], *, expanded: bool = False
) -> list[str]:
    """A note on each kind of syntax in the requests' prompts: the first, and how many more.

    `expanded` says that their alternatives were expanded, so that what is left is meant.
    """
    # What was read as LoRAs is no longer told.
    loras = {each.name for request in requests for each in request.loras or ()}
    # A negative prompt's alternatives never are.
    texts = {
        (text, expanded and text is request.prompt, request.prompt_syntax): None
        for request in requests
        for text in (request.prompt, request.prompt_2, request.negative_prompt)
        if text and len(text) <= MAX_PROMPT and _CHARACTERS.search(text)
    }
    found: dict[_Syntax, list[str]] = {}
    for text, meant, read_as in texts:
        for syntax in _SYNTAXES if meant else (_ALTERNATIVES, *_SYNTAXES):
            if syntax.is_weight and read_as == "a1111":
                continue
            match = syntax.pattern.search(text)
            if match and not (match[0][1:5] in {"lora", "lyco"} and _tag_name(match[0]) in loras):
                found.setdefault(syntax, []).append(match[0])
    return [
        f"{_shortened(matches[0])}{_others(len(matches) - 1)} {syntax.meaning}."
        for syntax, matches in found.items()
    ]


def _tag_name(tag: str) -> str:
    """The name in `<lora:name:0.8>`, without its folder."""
    return tag[1:-1].split(":")[1].strip().rpartition("/")[2]


def _shortened(text: str) -> str:
    return f"`{text}`" if len(text) <= 40 else f"`{text[:40]}…`"


def _others(number: int) -> str:
    return f" (and the like in {number:,} more prompts)" if number else ""
