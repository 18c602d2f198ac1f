"""The worker's process with the prompt-controlled stub backend."""

from t2i_cli.worker.daemon import run_worker
from tests.fakes.worker_process import Actor

if __name__ == "__main__":
    run_worker(lambda options: Actor())
