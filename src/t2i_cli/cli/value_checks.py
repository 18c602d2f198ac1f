"""Errors about the number of an option or argument show what was given."""

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperArgument, TyperOption

from t2i_cli.errors import InputError

_MAX_SHOWN = 60
"""Characters of a wrong value that its error shows."""
_NUMBERS = {int: "a whole number", float: "a number"}


def check_numbers(parameters: Iterable[object]) -> None:
    """Have errors about a number's value show that value."""
    for parameter in parameters:
        if isinstance(parameter, TyperOption | TyperArgument):
            for number, words in _NUMBERS.items():
                if parameter.type_descriptor.annotation in (number, list[number]):  # type: ignore[valid-type]
                    _show_wrong_number(parameter, number, words)


def _show_wrong_number(
    parameter: TyperOption | TyperArgument, number: type[int] | type[float], words: str
) -> None:
    original = parameter.process_value

    def process_value(context: typer.Context, value: Any) -> object:  # noqa: ANN401 - Typer's own
        try:
            return original(context, value)
        except typer.BadParameter as error:
            given = value if isinstance(value, list | tuple) else [value]
            wrong = next((one for one in given if not _is_number(one, number)), given[-1])
            shown = wrong if len(wrong) <= _MAX_SHOWN else wrong[: _MAX_SHOWN - 1] + "…"
            raise InputError(
                f"{_shown_name(parameter)} must be {words}{_range(parameter)}, not {shown!r}.",
                hint="--help lists what is taken.",
                field=parameter.name,
            ) from error

    parameter.process_value = process_value  # type: ignore[method-assign, assignment]


def _is_number(text: str, number: type[int] | type[float]) -> bool:
    try:
        number(text)
    except ValueError:
        return False
    return True


def _range(parameter: TyperOption | TyperArgument) -> str:
    low, high = parameter.min, parameter.max
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" of at least {low}"
    return "" if high is None else f" of at most {high}"


def _shown_name(parameter: TyperOption | TyperArgument) -> str:
    if isinstance(parameter, TyperOption):
        return next((name for name in parameter.opts if name.startswith("--")), parameter.name)
    return parameter.metavar or parameter.name
