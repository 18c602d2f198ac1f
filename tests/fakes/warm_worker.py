"""The worker's process with a backend that acts."""

from t2i_cli.worker.daemon import run_worker
from tests.fakes.warm import Actor

if __name__ == "__main__":
    run_worker(lambda options: Actor())
