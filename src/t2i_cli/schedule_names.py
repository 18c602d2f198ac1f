"""Names of noise schedules: which noise levels a sampler's steps are at (`--schedule karras`)."""

from collections.abc import Mapping

from t2i_cli.errors import InputError
from t2i_cli.known_names import name_choices

AUTO_SCHEDULE = "auto"
"""The scheduler's own."""
SCHEDULE_LABELS: Mapping[str, str] = {
    AUTO_SCHEDULE: "Automatic",
    "normal": "Normal",
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "sgm": "SGM Uniform",
}
"""AUTOMATIC1111's labels by name."""
_SPELLINGS: Mapping[str, str] = {
    **{label.lower(): name for name, label in SCHEDULE_LABELS.items()},
    **{name: name for name in SCHEDULE_LABELS},
    # AUTOMATIC1111 and ComfyUI call the same levels otherwise, too.
    "sgmuniform": "sgm",
    "simple": "sgm",
    "uniform": "normal",
}
_FIELD = "schedule"


def parse_schedule_name(given: object) -> str | None:
    """The name of a schedule from a spelling of AUTOMATIC1111 or ComfyUI; raises InputError.

    `None` for empty text.
    """
    if not isinstance(given, str):
        raise InputError("schedule must be text.", field=_FIELD)
    if not given.strip():
        return None
    found = find_schedule_name(given)
    if found is None:
        raise InputError(
            f"There is no schedule {given[:40]!r}; {name_choices(given, tuple(SCHEDULE_LABELS))}",
            hint=f"There are {', '.join(SCHEDULE_LABELS)}.",
            field=_FIELD,
        )
    return found


def find_schedule_name(given: str) -> str | None:
    """The name of a schedule from a spelling of AUTOMATIC1111 or ComfyUI; `None` if unknown."""
    return _SPELLINGS.get(" ".join(given.lower().replace("_", " ").replace("-", " ").split()))
