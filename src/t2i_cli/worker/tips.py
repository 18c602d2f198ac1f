"""The tip about keep_alive, shown to each user once."""

from contextlib import suppress

from t2i_cli.files.user_folders import NoHomeError, user_folder
from t2i_cli.terminal.console import Console


def show_tip_once(console: Console) -> None:
    """Show the tip on a terminal, unless this user has seen it."""
    if not console.live or console.json:
        return
    # Skip the tip if its marker cannot be written.
    with suppress(OSError, NoHomeError):
        folder = user_folder("state")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "keep-alive-mentioned").touch(exist_ok=False)
        console.note(
            "`t2i config set keep_alive 10m` keeps the model warm between runs, which then start "
            "at once."
        )
