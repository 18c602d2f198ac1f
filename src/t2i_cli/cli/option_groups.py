"""Commands that take groups of options: what Typer reads of them, and their help by groups.

A command declares a group as a parameter whose type is a frozen dataclass. Each of the dataclass's
fields with a Flag, an option of Typer's or a line in the table of request fields becomes an option
of the command, under the heading PANEL of the dataclass; a field that is a dataclass is a group
inside. The command is called with the groups, whole.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import partial
from typing import Annotated, Any, Protocol, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import ArgumentInfo, OptionInfo

from t2i_cli.errors import InputError
from t2i_cli.request_fields import FIELD, FIELDS, RequestField
from t2i_cli.settings.options import Flag

Command = TypeVar("Command", bound=Callable[..., None])

HELP_NAMES = {"help_option_names": ["-h", "--help"]}
"""The setting of Typer's root by which every command has both."""


def command(
    app: typer.Typer,
    *lines: str,
    name: str | None = None,
    **settings: Any,  # noqa: ANN401
) -> Callable[[Command], Command]:
    """Make a function a command of `app`, with these command lines at the end of its help.

    The function itself stays what it was, to be called with its groups.
    """

    def register(function: Command) -> Command:
        app.command(name, epilog=examples(*lines), **settings)(_flattened(function))
        return function

    return register


def examples(*lines: str) -> str:
    """Command lines as the end of a help text."""
    # The mark keeps lines from being filled up.
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


@dataclass(frozen=True)
class _Group:
    """A dataclass as options: its fields that are, by the options' names, and groups inside."""

    made: type
    options: Mapping[str, inspect.Parameter]
    groups: Mapping[str, "_Group"]

    @classmethod
    def of(cls, made: type) -> "_Group":
        hints = get_type_hints(made, include_extras=True)
        panel = getattr(made, "PANEL", None)
        options, groups = {}, {}
        for one in fields(made):
            hint = hints[one.name]
            if _is_group(hint):
                groups[one.name] = cls.of(hint)
            elif found := _option(one, hint, panel):
                options[one.name] = found
        return cls(made, options, groups)

    def parameters(self) -> Iterator[inspect.Parameter]:
        yield from self.options.values()
        for group in self.groups.values():
            yield from group.parameters()

    def build(self, given: Mapping[str, object]) -> object:
        """The dataclass with what is given on the command line."""
        own = {field: given[option.name] for field, option in self.options.items()}
        return self.made(**own, **{field: g.build(given) for field, g in self.groups.items()})


def _flattened(function: Callable[..., None]) -> Callable[..., None]:
    """The function as Typer can read it: an option is a parameter."""
    hints = get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    groups = {name: _Group.of(hints[name]) for name in hints if _is_group(hints[name])}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name in groups:
            parameters.extend(groups[name].parameters())
        else:
            parameters.append(
                parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY)
            )

    def run(**given: object) -> None:
        function(
            **{
                name: groups[name].build(given) if name in groups else given[name]
                for name in signature.parameters
            }
        )

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def _is_group(hint: object) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _option(one: "Field[Any]", hint: object, panel: str | None) -> inspect.Parameter | None:
    """The option of a dataclass's field, if it is one."""
    name, kind, info = one.name, hint, None
    if FIELD in one.metadata:
        known = FIELDS[one.name]
        if known.flags:
            name, kind = _parameter_name(known.flags), (str if known.parse else known.kind) | None
            info = typer.Option(*known.flags, help=field_help(known))
    elif get_origin(hint) is Annotated:
        kind, *marks = get_args(hint)
        for mark in marks:
            if isinstance(mark, Flag):
                name = _parameter_name(mark.names)
                info = typer.Option(
                    *mark.names,
                    help=mark.help,
                    min=mark.min,
                    max=mark.max,
                    callback=None if mark.min is None else _finite,
                )
            elif isinstance(mark, OptionInfo | ArgumentInfo):
                info = copy(mark)
    if info is None:
        return None
    info.rich_help_panel = panel
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=one.default,
        annotation=Annotated[kind, info],
    )


def _finite(value: float | None) -> float | None:
    """Refuse what no range of numbers keeps out: nan, and infinity where there is no upper end."""
    if value is not None and not math.isfinite(value):
        raise InputError(f"{value} is not a number that can be used here.")
    return value


def _parameter_name(flags: tuple[str, ...]) -> str:
    return flags[0].partition("/")[0].lstrip("-").replace("-", "_")


def field_help(known: RequestField) -> str:
    """What the help says of a request's field."""
    what = f"{known.help[:-1]}, in {known.unit}." if known.unit else known.help
    return what if known.default is None else f"{what} [default: {known.default}]"


class HelpFormatter(Protocol):
    """What Typer writes help with."""

    def section(self, name: str) -> Any: ...  # noqa: ANN401 - Typer's own context manager
    def write_dl(self, rows: list[tuple[str, str]]) -> None: ...


def group_help(part: TyperCommand) -> None:
    """Have a command's help tell its options by groups, as Typer does with Rich alone."""
    part.format_options = partial(_format_options, part)  # type: ignore[method-assign]


def _format_options(part: TyperCommand, context: typer.Context, formatter: HelpFormatter) -> None:
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    last: list[tuple[str, str]] = []
    for parameter in part.get_params(context):
        if (record := parameter.get_help_record(context)) is None:
            continue
        if parameter.param_type_name == "argument":
            panels["Arguments"].append(record)
        elif panel := getattr(parameter, "rich_help_panel", None):
            panels.setdefault(panel, []).append(record)
        else:
            last.append(record)
    for name, records in (*panels.items(), ("Options", last)):
        if records:
            with formatter.section(name):
                formatter.write_dl(records)
