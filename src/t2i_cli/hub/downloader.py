"""Bringing files of one snapshot into the cache, several at a time, and telling how far it is."""

import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from huggingface_hub import hf_hub_download

from t2i_cli.events import Downloading, Notice, OnEvent
from t2i_cli.hub import client
from t2i_cli.hub.errors import translate_hub_errors
from t2i_cli.hub.snapshot import Snapshot

PARALLEL_DOWNLOADS = 4
"""Files at a time: one connection alone does not fill a fast line."""
_AGAIN = "Run it again: the files that are finished are kept."


class FileDownload:
    """The download of some of a snapshot's files."""

    def __init__(self, snapshot: Snapshot, paths: list[str]) -> None:
        self._snapshot = snapshot
        self._paths = paths
        self._lock = threading.Lock()
        self._bytes = 0
        self._cancelled = False

    def run(self, done: int = 0, total: int = 0, on_event: OnEvent = lambda _: None) -> None:
        """Fetch the files, telling how many of `total` bytes are here; `done` were before.

        Ends at the first error, or on Ctrl-C; finished files stay. Raises T2IError.
        """
        repo = self._snapshot.repo
        warnings = client.hub_log.warnings
        noted = False
        pool = ThreadPoolExecutor(PARALLEL_DOWNLOADS)
        pending: set[Future[None]] = {pool.submit(self._get, path) for path in self._paths}
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                if client.hub_log.warnings > warnings and not noted:
                    noted = True
                    on_event(Notice(message="The connection to the Hub is poor; trying again."))
                here = min(done + self._bytes, total) if pending else total
                on_event(Downloading(model=repo, done=here, total=total))
        except BaseException:
            self._cancelled = True
            pool.shutdown(wait=False, cancel_futures=True)
            # Long enough for the others to notice and to remove their unfinished files.
            wait([future for future in pending if not future.cancelled()], timeout=5)
            raise
        pool.shutdown()

    def _get(self, path: str) -> None:
        if self._cancelled:
            raise _Cancelled
        count = self._count

        class Bar(client.NullProgressBar):
            def update(self, n: float | None = 1) -> None:
                count(int(n or 0))

        with translate_hub_errors(self._snapshot.repo, hint=_AGAIN):
            hf_hub_download(
                self._snapshot.repo, path, revision=self._snapshot.commit, tqdm_class=Bar
            )

    def _count(self, more: int) -> None:
        with self._lock:
            self._bytes += more
        if self._cancelled:
            raise _Cancelled


class _Cancelled(Exception):
    """Ends the download of one file after another's failed."""
