"""What a user is told once: that models can be kept warm."""

from contextlib import suppress

from t2i_cli.terminal.console import Console


def show_tip_once(console: Console) -> None:
    """Tell of keep_alive on a terminal, unless this user was told before."""
    if not console.live or console.json:
        return
    from platformdirs import user_state_path

    folder = user_state_path("t2i", appauthor=False)
    # Who cannot be remembered as told is not told.
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "keep-alive-mentioned").touch(exist_ok=False)
        console.note(
            "`t2i config set keep_alive 10m` keeps the model warm between runs, which then start "
            "at once."
        )
