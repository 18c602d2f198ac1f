"""Runs a batch with a stub backend.

Usage: `python -m tests.fakes.batch_process FILE FOLDER`. Its options: `--events`, `--json`,
`-v`, `-q`, `--retry-failed`; the variable PAUSE gives the seconds per pass, PASS the images of one,
and LOAD the seconds of loading the model. CLUSTER is the address of a Ray cluster whose workers
make the images, instead. RETRY_SECONDS shortens the retries of a bucket's calls. A prompt with the
word "bug" raises RuntimeError.
"""

import os
import sys

from t2i_cli.backend import Backend
from t2i_cli.batch import session
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.plan import SelectionOptions
from t2i_cli.buckets import object_store
from t2i_cli.buckets.bucket_url import parse_place
from t2i_cli.errors import T2IError
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.request import ResolvedRequest
from t2i_cli.terminal.console import console
from tests.fakes.stub_backend import StubBackend


def bug(request: ResolvedRequest) -> T2IError | None:
    """Raise for a prompt that asks for it."""
    if "bug" in request.prompt.split():
        raise RuntimeError("the backend broke")
    return None


def main() -> int:
    """Run the batch; the exit code."""
    console.configure(
        events="--events" in sys.argv,
        json="--json" in sys.argv,
        verbose="-v" in sys.argv,
        quiet="-q" in sys.argv,
    )
    backend: Backend = StubBackend(
        pause=float(os.environ.get("PAUSE", "0")),
        loading=float(os.environ.get("LOAD", "0")),
        pass_size=int(os.environ.get("PASS", "1")),
        steps=True,
        side=64,
        fails=bug,
    )
    if seconds := os.environ.get("RETRY_SECONDS"):
        # Of every call to a bucket: a cut network is to be noticed soon.
        quick = RetryPolicy(retries=5, timeout=float(seconds) * 10, first_pause=float(seconds) / 8)
        object_store.RETRY_POLICY = quick
    if address := os.environ.get("CLUSTER"):
        from t2i_cli.backends.local.options import LocalOptions
        from t2i_cli.backends.ray import RayBackend, RayOptions
        from tests.fakes.ray_workers import make_stub

        options = RayOptions(local=LocalOptions(batch_size=1), address=address)
        backend = RayBackend(options, make_stub)
    task = session.BatchConfig(
        source=sys.argv[1],
        input_format=None,
        folder=parse_place(sys.argv[2]),
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
