"""A process that runs a batch with a painter: `python -m tests.fakes.painting FILE FOLDER`.

Its options: PAUSE seconds an image in the environment, `--events`, `--json`, `-v`,
`--retry-failed`. A prompt with the word "bug" raises what nobody expects.
"""

import os
import sys
from pathlib import Path

from t2i_cli.batch import session
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.plan import SelectionOptions
from t2i_cli.errors import T2IError
from t2i_cli.request import ResolvedRequest
from t2i_cli.terminal.console import console
from tests.fakes.painter import Painter


def bug(request: ResolvedRequest) -> T2IError | None:
    """Raise for a prompt that asks for it."""
    if "bug" in request.prompt.split():
        raise RuntimeError("the painter broke")
    return None


def main() -> int:
    """Run the batch; the exit code."""
    console.configure(
        events="--events" in sys.argv, json="--json" in sys.argv, verbose="-v" in sys.argv
    )
    backend = Painter(pause=float(os.environ.get("PAUSE", "0")), steps=True, side=64, fails=bug)
    task = session.BatchConfig(
        source=sys.argv[1],
        input_format=None,
        folder=Path(sys.argv[2]),
        options=BatchOptions(),
        selection=SelectionOptions(retry_failed="--retry-failed" in sys.argv),
    )
    try:
        session.run_batch(task, backend, console)
    except T2IError as error:
        console.error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
