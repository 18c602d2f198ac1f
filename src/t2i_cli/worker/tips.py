"""The tip about keep_alive, shown to each user once."""

from contextlib import suppress

from t2i_cli.terminal.console import Console


def show_tip_once(console: Console) -> None:
    """Show the tip on a terminal, unless this user has seen it."""
    if not console.live or console.json:
        return
    from platformdirs import user_state_path

    folder = user_state_path("t2i", appauthor=False)
    # Skip the tip if its marker cannot be written.
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "keep-alive-mentioned").touch(exist_ok=False)
        console.note(
            "`t2i config set keep_alive 10m` keeps the model warm between runs, which then start "
            "at once."
        )
