"""`t2i login` and `t2i logout`: accounts of the Hugging Face Hub and Google Cloud."""

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from t2i_cli.cli.option_groups import command, examples
from t2i_cli.cli.options import JsonOpt, QuietOpt
from t2i_cli.errors import AccessError, InputError
from t2i_cli.terminal.console import console

app = typer.Typer(
    help="Log in to the Hugging Face Hub, or check the login of Google Cloud.",
    epilog=examples("t2i login", "t2i login --token-stdin < token.txt", "t2i login --status"),
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def login(
    context: typer.Context,
    token_stdin: Annotated[
        bool, typer.Option("--token-stdin", help="Read the token from standard input.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Say who is logged in; change nothing.")
    ] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Log in to the Hugging Face Hub: asks for a token, checks it, and has it stored."""
    if context.invoked_subcommand:
        if token_stdin or status or json or quiet:
            raise InputError("Options of the login come after its subcommand.")
        return
    console.configure(json=json, quiet=quiet)
    if status:
        if token_stdin:
            raise InputError("--status takes no token.")
        _status(json)
        return
    from t2i_cli.hub import account

    owner = account.store_token(_token(token_stdin))
    if json:
        console.result_json(asdict(owner))
    else:
        console.note(f"Logged in to the Hugging Face Hub as {owner.user}.")
    if account.token_source() != owner.source:
        console.warn(f"{account.token_source()} is set and wins over the token just stored.")


@command(
    app,
    "t2i login vertex",
    "t2i login vertex --impersonate robot@my-project.iam.gserviceaccount.com",
)
def vertex(
    impersonate: Annotated[
        str | None,
        typer.Option("--impersonate", help="Act as this service account.", metavar="ACCOUNT"),
    ] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Check the credentials for Google Cloud: whose they are, where they lie, what they may do."""
    console.configure(json=json, quiet=quiet)
    from t2i_cli.vertex import permissions

    found, capabilities = permissions.check_capabilities(impersonate)
    if json:
        console.result_json(
            asdict(found) | {"able": asdict(capabilities) if capabilities else None}
        )
        return
    console.result(f"account: {found.account or 'not told by these credentials'}")
    console.result(f"project: {found.project or 'none; set GOOGLE_CLOUD_PROJECT'}")
    console.result(f"found: {found.source}")
    if capabilities:
        console.result(f"may: {capabilities.text()}")


def logout(json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Take the token in use out of huggingface_hub's store."""
    console.configure(json=json, quiet=quiet)
    from t2i_cli.hub import account

    name = account.remove_token()
    left = account.token_source()
    if json:
        console.result_json({"removed": name, "still_logged_in_by": left})
    else:
        console.note(f"Removed {name}." if name else "There was no token to remove.")
    if left:
        console.warn(f"{left} is set and still logs you in; unset it to log out.")


def _status(json: bool) -> None:
    from t2i_cli.hub import account

    owner = account.token_owner()
    if owner is None:
        raise AccessError(
            "Nobody is logged in to the Hugging Face Hub.",
            hint="Only gated and private models need it: `t2i login`.",
        )
    if json:
        console.result_json(asdict(owner))
    else:
        console.result(f"{owner.user}, by the token {owner.token_name or ''} from {owner.source}")


def _token(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.read().strip()
    if not console.interactive:
        raise InputError(
            "There is no terminal to ask for a token on.",
            hint="--token-stdin reads it from a pipe.",
        )
    import getpass

    console.note("A token is made at https://huggingface.co/settings/tokens (role: read).")
    return getpass.getpass("Token, not shown: ", stream=sys.stderr).strip()
