"""The file of styles that `--styles` names, or the setting."""

from pathlib import Path

from t2i_cli.files.user_paths import expand_option
from t2i_cli.prompts.styles import StyleFile
from t2i_cli.settings import store


def chosen_styles(option: str | None) -> StyleFile | None:
    """The file of styles that a command uses; `None` without one. Raises InputError."""
    path = store.resolve_setting("styles", option)
    return StyleFile(Path(expand_option(path))) if path else None
