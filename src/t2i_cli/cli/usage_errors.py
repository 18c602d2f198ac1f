"""Translates Typer's usage errors, and refuses empty values of options and arguments."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Protocol, cast

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from t2i_cli.cli.option_groups import group_help
from t2i_cli.cli.value_checks import check_numbers
from t2i_cli.errors import InputError
from t2i_cli.known_names import closest_name, suggest_name

_EMPTY_ALLOWED = {"negative_prompt", "prompt", "value", "command"}
"""Parameters that may be empty: a negative prompt, those with an own error, a program's words."""
_EXTRA = re.compile(r"Got unexpected extra argument(?:\(s\)|s)? \((.*)\)", re.DOTALL)
_HELP = "--help lists what is taken."


class _UsageError(Protocol):
    """What is used of Typer's errors, whose classes are not public."""

    ctx: typer.Context | None

    def format_message(self) -> str: ...


def usage_error(error: typer.TyperException, arguments: Sequence[str]) -> InputError:
    """The InputError of a command line that Typer refuses, with what was probably meant."""
    usage = cast(_UsageError, error)
    message, context = usage.format_message(), getattr(usage, "ctx", None)
    if context is None:
        return InputError(message, hint=_HELP)
    if hasattr(error, "possibilities"):
        name = str(getattr(error, "option_name", ""))
        flags = [flag for each in context.command.get_params(context) for flag in each.opts]
        meant = suggest_name(name, [flag for flag in flags if flag.startswith("-")])
        if context.parent is None and not meant:
            meant = "The command comes first, as in t2i generate -m postcard. "
        return InputError(f"There is no option {name}.", hint=f"{meant}{_HELP}")
    if found := _EXTRA.fullmatch(message):
        return _extra_words(context, found[1])
    if message.startswith("No such command"):
        return _unknown_command(context, arguments)
    return InputError(message, hint=_HELP)


def _extra_words(context: typer.Context, extra: str) -> InputError:
    """Words beyond the arguments: mostly a prompt without quotes."""
    from t2i_cli.prompts import generate_instead, quote_prompt

    values = context.params
    words = [values.get(name) for name in ("prompt_option", "prompt", "file")]
    text = " ".join([*(str(word) for word in words if word), extra])
    if "prompt" in values:
        return InputError(
            f"The prompt is one argument; there is more: {extra}.",
            hint=f"Quote it: {context.command_path} {quote_prompt(text)}",
            field="prompt",
        )
    if values.get("file"):
        return InputError(
            f"{context.command_path} takes one prompts file; there is more: {extra}.",
            hint=generate_instead(text),
        )
    return InputError(
        f"{context.command_path} takes no more arguments; there is more: {extra}.",
        hint=f"What has spaces is quoted. {_HELP}",
    )


def _unknown_command(context: typer.Context, arguments: Sequence[str]) -> InputError:
    """A word that is no command of the group; for `t2i` itself it may be a prompt."""
    from t2i_cli.prompts import generate_instead

    group = cast(TyperGroup, context.command)
    depth = len(context.command_path.split()) - 1
    words = [*takewhile(lambda word: not word.startswith("-"), arguments[depth:])]
    name = words[0] if words else ""
    message = f"{context.command_path} has no command {name!r}."
    if closest_name(name, group.commands) is None and context.parent is None:
        return InputError(message, hint=generate_instead(" ".join(words)))
    return InputError(message, hint=f"{suggest_name(name, group.commands)}{_HELP}")


def walk_commands(
    path: tuple[str, ...], command: object
) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield a command and all its subcommands, each with its path."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk_commands((*path, name), child)


def prepare_commands(root: object) -> None:
    """Set what Typer has no setting for: grouped help, no empty values, numbers in errors."""
    for _, part in walk_commands((), root):
        _refuse_empty_values(getattr(part, "params", ()))
        check_numbers(getattr(part, "params", ()))
        if isinstance(part, TyperCommand):
            group_help(part)
        if isinstance(part, TyperGroup):
            part.suggest_commands = False  # `usage_error` does


def _refuse_empty_values(parameters: Iterable[object]) -> None:
    """Refuse empty values: an unset shell variable must select no default, nor this folder."""
    for parameter in parameters:
        if isinstance(parameter, TyperOption | TyperArgument):
            if parameter.name not in _EMPTY_ALLOWED:
                _refuse_empty(parameter)


def _refuse_empty(parameter: TyperOption | TyperArgument) -> None:
    original = parameter.handle_parse_result

    def handle_parse_result(
        context: typer.Context, values: Mapping[str, object], arguments: list[str]
    ) -> tuple[object, list[str]]:
        value = values.get(str(parameter.name))
        if "" in (value if isinstance(value, list | tuple) else [value]):
            if not context.resilient_parsing:
                raise InputError(
                    f"{_label(parameter)} is empty.",
                    hint="Give it a value, or leave it away.",
                    field=parameter.name,
                )
        return original(context, values, arguments)

    parameter.handle_parse_result = handle_parse_result  # type: ignore[method-assign, assignment]


def _label(parameter: TyperOption | TyperArgument) -> str:
    """How messages name it: `--output`, or `FILE`."""
    if isinstance(parameter, TyperOption):
        return max(parameter.opts, key=len)
    return parameter.metavar or str(parameter.name).upper()
