"""Option groups: commands take dataclasses, which become Typer options with grouped help.

A command declares a group as a parameter whose type is a frozen dataclass. A field of the dataclass
becomes an option of the command if it has a Flag, a Typer option, or an entry in the table of
request fields, and is not in the dataclass's OMITTED; its heading is the dataclass's PANEL if it
has none of its own. A field that is a dataclass is a nested group. The command is called with
instances of the dataclasses.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import ArgumentInfo, OptionInfo

from t2i_cli.cli.value_completion import completer_for
from t2i_cli.errors import InputError
from t2i_cli.files.user_paths import expand_option
from t2i_cli.request_field import RequestField
from t2i_cli.request_fields import FIELD, FIELDS
from t2i_cli.settings.options import Flag

Command = TypeVar("Command", bound=Callable[..., None])

HELP_NAMES = {"help_option_names": ["-h", "--help"]}
"""Context settings of the root command; subcommands inherit them."""


def command(
    app: typer.Typer,
    *lines: str,
    name: str | None = None,
    alias: str | None = None,
    **settings: Any,  # noqa: ANN401
) -> Callable[[Command], Command]:
    """Register a function as a command of `app`, with `lines` as examples in its help.

    `alias` is a second name, which help does not list. Returns the function unchanged; it is called
    with its groups.
    """

    def register(function: Command) -> Command:
        run, epilog = _flatten_groups(function), examples(*lines)
        app.command(name, epilog=epilog, **settings)(run)
        if alias:
            app.command(alias, epilog=epilog, hidden=True, **settings)(run)
        return function

    return register


def examples(*lines: str) -> str:
    """Format command lines as the examples at the end of a help text."""
    # The marker \b prevents re-wrapping of the lines.
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


@dataclass(frozen=True)
class _Group:
    """A dataclass as options: parameters by field name, and nested groups by field name."""

    group_type: type
    options: Mapping[str, inspect.Parameter]
    groups: Mapping[str, "_Group"]

    @classmethod
    def of(cls, group_type: type) -> "_Group":
        hints = get_type_hints(group_type, include_extras=True)
        panel = getattr(group_type, "PANEL", None)
        omitted = getattr(group_type, "OMITTED", ())
        options, groups = {}, {}
        for field in fields(group_type):
            if field.name in omitted:
                continue
            hint = hints[field.name]
            if _is_group(hint):
                groups[field.name] = cls.of(hint)
            elif found := _field_option(field, hint, panel):
                options[field.name] = found
        return cls(group_type, options, groups)

    def parameters(self) -> Iterator[inspect.Parameter]:
        yield from self.options.values()
        for group in self.groups.values():
            yield from group.parameters()

    def build(self, values: Mapping[str, object]) -> object:
        """Create the dataclass from the values of its options, by parameter name."""
        own = {field: values[option.name] for field, option in self.options.items()}
        return self.group_type(
            **own, **{field: g.build(values) for field, g in self.groups.items()}
        )


def _flatten_groups(function: Callable[..., None]) -> Callable[..., None]:
    """Wrap a function for Typer: each option of its groups becomes a parameter."""
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

    def run(**values: object) -> None:
        values = {name: _expanded(value) for name, value in values.items()}
        function(
            **{
                name: groups[name].build(values) if name in groups else values[name]
                for name in signature.parameters
            }
        )

    parameters = [_for_the_command_line(parameter) for parameter in parameters]
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


_PLACEHOLDERS: Mapping[object, str] = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}
"""What help shows in the place of an option's value, by its type."""


def _for_the_command_line(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter with a placeholder for help, and with completion of its values."""
    if get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, *marks = get_args(parameter.annotation)
    infos = [copy(mark) for mark in marks if isinstance(mark, OptionInfo | ArgumentInfo)]
    for info in infos:
        if isinstance(info, ArgumentInfo):
            info.metavar = info.metavar or parameter.name.upper()
        else:
            info.metavar = info.metavar or _PLACEHOLDERS.get(_value_type(kind))
        info.autocompletion = info.autocompletion or completer_for(parameter.name)
    return parameter.replace(annotation=Annotated[kind, *infos])


def _value_type(kind: object) -> object:
    """The type of one value: `int` for `int | None` and for `list[int] | None`."""
    for part in get_args(kind):
        if part is not type(None):
            return _value_type(part)
    return kind


def _expanded(value: object) -> object:
    """A command's value; in paths `~` is expanded, which shells leave in `--output=~/images`."""
    if isinstance(value, Path):
        return Path(expand_option(str(value)))
    return [_expanded(each) for each in value] if isinstance(value, list) else value


def _is_group(hint: object) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _field_option(field: "Field[Any]", hint: object, panel: str | None) -> inspect.Parameter | None:
    """The option for a field of a dataclass, `None` if it has none."""
    name, kind, info = field.name, hint, None
    if FIELD in field.metadata:
        known = FIELDS[field.name]
        panel = known.panel or panel
        if known.flags:
            name, kind = _parameter_name(known.flags), _option_kind(known)
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
    info.rich_help_panel = info.rich_help_panel or panel
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=Annotated[kind, info],
    )


def _option_kind(known: RequestField) -> object:
    if known.repeated:
        return list[str] | None
    return (str if known.parse else known.kind) | None


def _finite(value: float | None) -> float | None:
    """Refuse NaN and infinity, which pass range checks. Raises InputError."""
    if value is not None and not math.isfinite(value):
        raise InputError(f"{value} is not a number that can be used here.")
    return value


def _parameter_name(flags: tuple[str, ...]) -> str:
    return flags[0].partition("/")[0].lstrip("-").replace("-", "_")


def field_help(known: RequestField) -> str:
    """The help text of a request field."""
    what = f"{known.help[:-1]}, in {known.unit}." if known.unit else known.help
    return what if known.default is None else f"{what} [default: {known.default}]"


class HelpFormatter(Protocol):
    """The interface of Typer's help formatter."""

    def section(self, name: str) -> Any: ...  # noqa: ANN401 - Typer's own context manager
    def write_dl(self, rows: list[tuple[str, str]]) -> None: ...


def group_help(typer_command: TyperCommand) -> None:
    """Make a command's help list its options by group, which Typer does only with Rich."""
    typer_command.format_options = partial(_format_options, typer_command)  # type: ignore[method-assign]


def _format_options(
    typer_command: TyperCommand, context: typer.Context, formatter: HelpFormatter
) -> None:
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    ungrouped: list[tuple[str, str]] = []
    for parameter in typer_command.get_params(context):
        if (record := parameter.get_help_record(context)) is None:
            continue
        if parameter.param_type_name == "argument":
            # Without the name of its type, which Typer puts behind it.
            panels["Arguments"].append((str(parameter.metavar), record[1]))
        elif panel := getattr(parameter, "rich_help_panel", None):
            panels.setdefault(panel, []).append(record)
        else:
            ungrouped.append(record)
    for name, records in (*panels.items(), ("Options", ungrouped)):
        if records:
            with formatter.section(name):
                formatter.write_dl(records)
