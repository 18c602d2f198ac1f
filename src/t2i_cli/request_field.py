"""What a declaration of a request field consists of; the fields themselves: `request_fields.py`."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from t2i_cli.errors import InputError

MAX_PROMPT = 5_000
"""Characters; prompt, negative prompt and their metadata fit a JPEG's 64 KB segment."""


_MAX_SHOWN = 40
"""Characters of a value that is none of the choices, in the error."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Unicode categories Cc, except tab and line ends, and Cs."""


@dataclass(frozen=True, kw_only=True)
class RequestField:
    """Declaration of a field; `name` and `kind` (the type) come from the attribute.

    For people: `help` describes it, `default` describes its value when not set, `label` is its
    short name on pages, `placeholder` that of its input, `summary` its format in plans, of what
    `to_text` makes of the value. `flags` are its option's names, empty if each command declares its
    own, and `panel` is the heading of it in help, if not that of its group; with `repeated` the
    option may be given several times, and `parse` takes a list. `unit` is the value's unit, `low`
    and `high` are its inclusive range; text with `choices` is one of them. `unset` is a number that
    stands for "not set", as other programs write it.

    For servers: `dialects` maps each dialect that takes it to its name there, `true_cfg` is another
    name (see Dialect); `aliases` are names that clients of other servers use, which t2i's takes as
    well. `servings` take it under the name `vertex`, or its own if that is empty.
    With `echoed` a server's response must contain the value that was sent.

    `pipeline` is the argument of diffusers' pipelines that it is passed as, `infotext` its name in
    AUTOMATIC1111's infotext. With `model_default` models have their own default; `needs` is the key
    of a model's description (GET /t2i/v1/model) that must be set for it to have an effect, and that
    lists its values if it is a list. Images in one batch may differ in `per_image` fields. `prose`
    is text of any length; `may_be_blank` allows blank text. With `on_page` the server's page
    generates an input for it. With `identity` it is part of an image's id. An `expanded` field has
    become part of others when a request is resolved, as a style of the prompt: it is recorded, but
    no backend is asked for it.
    """

    name: str = ""
    kind: type = str
    help: str
    default: str | None = None
    label: str
    placeholder: str | None = None
    summary: str | None = None
    flags: tuple[str, ...] = ()
    panel: str | None = None
    repeated: bool = False
    unit: str | None = None
    low: int | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    unset: int | None = None
    dialects: Mapping[str, str] = field(default_factory=dict)
    true_cfg: str | None = None
    aliases: tuple[str, ...] = ()
    servings: frozenset[str] = frozenset()
    vertex: str = ""
    echoed: bool = True
    pipeline: str | None = None
    infotext: str | None = None
    model_default: bool = False
    needs: str | None = None
    per_image: bool = False
    prose: bool = False
    may_be_blank: bool = False
    on_page: bool = True
    identity: bool = True
    expanded: bool = False
    parse: Callable[[object], Any] | None = None
    to_json: Callable[[Any], object] | None = None
    to_text: Callable[[Any], str] | None = None
    digest: Callable[[Any], object] | None = None

    def is_unset(self, value: object) -> bool:
        """Whether a value stands for "not set"."""
        return (
            value is None
            or (self.repeated and value == [])
            or (self.unset is not None and value == self.unset)
        )

    def check(self, value: Any) -> None:  # noqa: ANN401 - of the field's own type
        """Raise InputError for a value that no model takes."""
        if isinstance(value, str):
            _check_text(self.name, value)
            if not value.strip() and not self.may_be_blank:
                raise InputError(f"The {self.name} is empty.", field=self.name)
            if self.choices and value not in self.choices:
                from t2i_cli.known_names import name_choices

                raise InputError(
                    f"{self.name} cannot be {value[:_MAX_SHOWN]!r}; "
                    f"{name_choices(value, self.choices)}",
                    field=self.name,
                )
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{self.name} must be a number.", field=self.name)
        elif self.low is not None or self.high is not None:
            check_range(self.name, value, self.low, self.high)

    def json_value(self, value: Any) -> object:  # noqa: ANN401 - of the field's own type
        """The value encoded for JSON."""
        return value if self.to_json is None or value is None else self.to_json(value)

    def summary_text(self, value: object) -> str:
        """The value of a record as plans tell it."""
        parsed = self.parse(value) if self.parse else value
        return (self.summary or "{}").format(self.to_text(parsed) if self.to_text else parsed)

    def identity_value(self, value: Any) -> object:  # noqa: ANN401 - of the field's own type
        """The value's representation in ids."""
        return self.json_value(value) if self.digest is None else self.digest(value)


def whole_number(value: object) -> object:
    """A float without a fraction as the whole number that it is; other values as they are.

    JSON has one number type; spreadsheets and Vertex AI write 7 as 7.0.
    """
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_range(name: str, value: float, low: float | None, high: float | None) -> None:
    """Raise InputError for a number outside its inclusive range."""
    if (low is None or low <= value) and (high is None or value <= high):
        return
    if low is not None and high is not None:
        allowed = f"from {low} to {high:.10g}"
    else:
        allowed = f"at least {low}" if high is None else f"at most {high:.10g}"
    raise InputError(f"{name} must be {allowed}, not {value}.", field=name)


def _check_text(name: str, text: str) -> None:
    """Raise InputError for text that is too long or has control characters."""
    if len(text) > MAX_PROMPT:
        raise InputError(
            f"{name} has {len(text):,} characters; at most {MAX_PROMPT:,} are taken.", field=name
        )
    if found := _CONTROL.search(text):
        raise InputError(
            f"{name} has the control character U+{ord(found[0]):04X} "
            f"at position {found.start() + 1}.",
            field=name,
        )
