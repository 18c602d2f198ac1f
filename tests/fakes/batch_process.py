"""Runs a batch with a stub backend.

Usage: `python -m tests.fakes.batch_process FILE FOLDER`. Its options: `--events`, `--json`,
`-v`, `-q`, `--retry-failed`; the variable PAUSE gives the seconds per pass, PASS the images of one,
LOAD the seconds of loading the model, SHARD the part to make. CLUSTER is the address of a Ray
cluster whose workers make the images, instead. RETRY_PAUSE is the first pause of a bucket's calls.
A prompt with the word "bug" raises RuntimeError.
"""

import os
import sys
from dataclasses import replace

from t2i_cli.backend import Backend
from t2i_cli.batch import session
from t2i_cli.batch.lock import parse_shard
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.plan import SelectionOptions
from t2i_cli.buckets import object_store
from t2i_cli.buckets.bucket_url import parse_place
from t2i_cli.errors import T2IError
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
    if pause := os.environ.get("RETRY_PAUSE"):
        # Of every call to a bucket: a cut network is to be noticed soon.
        object_store.RETRY_POLICY = replace(object_store.RETRY_POLICY, first_pause=float(pause))
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
        selection=SelectionOptions(
            retry_failed="--retry-failed" in sys.argv,
            shard=parse_shard(os.environ["SHARD"]) if "SHARD" in os.environ else None,
        ),
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
