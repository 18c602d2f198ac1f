"""Downloads files of one snapshot in parallel, with progress events."""

import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from huggingface_hub import hf_hub_download

from t2i_cli.events import Downloading, Notice, OnEvent
from t2i_cli.hub import client
from t2i_cli.hub.errors import translate_hub_errors
from t2i_cli.hub.snapshot import Snapshot

PARALLEL_DOWNLOADS = 4
"""Parallel downloads: one connection does not saturate a fast network."""
_RETRY_HINT = "Run it again: the files that are finished are kept."


class FileDownload:
    """The download of some of a snapshot's files."""

    def __init__(self, snapshot: Snapshot, paths: list[str]) -> None:
        self._snapshot = snapshot
        self._paths = paths
        self._lock = threading.Lock()
        self._bytes = 0
        self._cancelled = False

    def run(self, done: int = 0, total: int = 0, on_event: OnEvent = lambda _: None) -> None:
        """Download the files; progress events count from `done` to `total` bytes.

        Stops at the first error or Ctrl-C; finished files stay. Raises T2IError.
        """
        repo = self._snapshot.repo
        warnings = client.hub_log.warnings
        warned = False
        pool = ThreadPoolExecutor(PARALLEL_DOWNLOADS)
        pending: set[Future[None]] = {pool.submit(self._download, path) for path in self._paths}
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                if client.hub_log.warnings > warnings and not warned:
                    warned = True
                    on_event(Notice(message="The connection to the Hub is poor; trying again."))
                present = min(done + self._bytes, total) if pending else total
                on_event(Downloading(model=repo, done=present, total=total))
        except BaseException:
            self._cancelled = True
            pool.shutdown(wait=False, cancel_futures=True)
            # Give the other downloads time to notice, and to remove their partial files.
            wait([future for future in pending if not future.cancelled()], timeout=5)
            raise
        pool.shutdown()

    def _download(self, path: str) -> None:
        if self._cancelled:
            raise _Cancelled
        count = self._add_bytes

        class Bar(client.NullProgressBar):
            def update(self, n: float | None = 1) -> None:
                count(int(n or 0))

        with translate_hub_errors(self._snapshot.repo, hint=_RETRY_HINT):
            hf_hub_download(
                self._snapshot.repo, path, revision=self._snapshot.commit, tqdm_class=Bar
            )

    def _add_bytes(self, more: int) -> None:
        with self._lock:
            self._bytes += more
        if self._cancelled:
            raise _Cancelled


class _Cancelled(Exception):
    """Aborts a file's download after another one failed."""
