"""The ray backend: each worker has a local backend, and gets passes as it asks for them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag

from t2i_cli.backend import (
    Backend,
    CancellationToken,
    Failure,
    GeneratedImage,
    WorkerReport,
)
from t2i_cli.backends.local import LocalBackend, device
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.backends.ray import connection
from t2i_cli.backends.ray.losses import LostConnectionError, RunEnded
from t2i_cli.backends.ray.options import RayOptions
from t2i_cli.backends.ray.pass_runner import WorkerConfig
from t2i_cli.backends.ray.pool import WorkerPool
from t2i_cli.backends.ray.pool_state import PoolRun, forward_events
from t2i_cli.events import Notice, OnEvent
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.request import GenerateRequest, ResolvedRequest

_POLL_INTERVAL = 0.1
"""Seconds between two checks of whether to stop."""
_MAX_RECONNECTIONS = 2
"""How often a run goes on after the connection to Ray was lost: its own images may be the cause."""


class RayBackend:
    """A backend on the workers of a Ray cluster. Raises only T2IError.

    `make_backend` makes a worker's backend, in its process; it is a function of a module there.
    """

    def __init__(
        self,
        options: RayOptions,
        make_backend: Callable[[LocalOptions], Backend],
        make_pool: Callable[[RayOptions, Callable[[], WorkerConfig]], WorkerPool] = WorkerPool,
    ) -> None:
        connection.require_ray()
        self._options = options
        self._make_backend = make_backend
        self._pool = make_pool(options, self._worker_config)
        # What is asked about models takes no GPU of a machine that is not a worker's.
        described = options.local if options.starts_ray else _without_device(options.local)
        self._models = make_backend(described)
        self._folders: dict[str, Path] = {}

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """Describe the model that the request names. Raises T2IError."""
        spec = self._models.describe(request)
        name = request.model or catalog.DEFAULT_MODEL
        if spec.folder and not Path(name).is_absolute() and catalog.folder_named(name):
            self._folders[name] = spec.folder.absolute()
        return spec

    def check(self, request: ResolvedRequest) -> None:
        """Raise T2IError for fields that cannot be honoured; each worker checks its own memory."""
        if not self._options.starts_ray and self._options.uses_gpus:
            request = replace(request, quantize=None)  # which its own device decides
        if isinstance(self._models, LocalBackend):
            self._models.check_fields(request)
        else:
            self._models.check(request)

    def estimate(self, request: ResolvedRequest) -> dict[str, object]:
        """The workers, and for a Ray that is started on this machine what the image takes here."""
        cluster: dict[str, object] = {"backend": "ray", "address": self._options.address}
        if self._options.starts_ray:
            workers = self._local_workers()
            cluster |= self._models.estimate(request) | {"workers": workers}
            cluster.pop("unused_gpus", None)
        else:
            self._pool.open()
            if not self._pool.size:
                raise connection.no_gpu_error(self._options)
            cluster |= {"device": self._options.worker_device, "workers": self._pool.size}
        if self._options.uses_gpus:
            cluster |= {"gpus_per_worker": self._options.gpus_per_worker}
        return cluster

    def image_price(self, request: ResolvedRequest) -> None:
        """Return `None`: a cluster bills no image."""

    def parallelism(self) -> int:
        """As many as there are workers."""
        return max(1, self._pool.size)

    def worker_reports(self) -> list[WorkerReport]:
        """The status of each worker that was started, by number."""
        return self._pool.table.reports()

    def resolve_revision(self, model: str, revision: str | None) -> str | None:
        """The commit that a model's revision resolves to."""
        return self._models.resolve_revision(model, revision)

    def load(self, request: ResolvedRequest, on_event: OnEvent) -> None:
        """Have every worker load the model, and wait for the first that has. Raises T2IError."""
        self._open(on_event)
        run = self._pool.add_load(request)
        while True:
            self._pool.check_progress()
            item = forward_events(run, on_event, _POLL_INTERVAL)
            if isinstance(item, RunEnded):
                if item.error:
                    raise item.error
                return

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """Yield one outcome per request, as the workers make them."""
        soon = cancel.soon if isinstance(cancel, CancellationToken) else Flag()
        self._open(on_event, lambda: cancel.is_set() or soon.is_set())
        run, ending, lost = PoolRun(requests, previews), False, 0
        left = set(range(len(requests)))
        if soon.is_set():
            return
        self._pool.add_run(run)
        try:
            while left and not cancel.is_set():
                if soon.is_set() and not ending:
                    ending = True
                    self._pool.finish_soon(run)
                self._pool.check_progress()
                item = forward_events(run, on_event, _POLL_INTERVAL)
                if isinstance(item, RunEnded):
                    if not item.error:
                        return
                    recoverable = isinstance(item.error, LostConnectionError)
                    if not recoverable or lost == _MAX_RECONNECTIONS:
                        raise item.error
                    if soon.is_set():
                        return
                    lost += 1
                    on_event(Notice(message=item.error.message))
                    self._open(on_event, lambda: cancel.is_set() or soon.is_set())
                    run, ending = PoolRun(requests, previews, left), False
                    self._pool.add_run(run)
                if isinstance(item, GeneratedImage | Failure):
                    left.remove(item.index)
                    if run.has_caught_up():
                        self._pool.hand_out()
                    yield item
        finally:
            self._pool.remove_run(run)

    def close(self) -> None:
        """End the workers, and the Ray that was started."""
        self._models.close()
        self._pool.close()

    def _open(self, on_event: OnEvent, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        if self._pool.is_open:
            return
        if self._options.starts_ray:
            self._local_workers()
            on_event(Notice(message="Ray is started on this machine, which takes seconds."))
        else:
            on_event(Notice(message=f"Connecting to the Ray cluster at {self._options.address}."))
        self._pool.open(is_cancelled)

    def _local_workers(self) -> int:
        """The workers of a Ray on this machine. Raises RemoteError if there is no GPU for them."""
        if not self._options.uses_gpus:
            return self._options.workers or 1
        gpus = device.count_gpus()
        if not gpus:
            raise connection.no_gpu_error(self._options)
        return self._options.workers or int(gpus / self._options.gpus_per_worker + 1e-6)

    def _worker_config(self) -> WorkerConfig:
        return WorkerConfig(
            make_backend=self._make_backend,
            options=self._options.local,
            format=self._options.format,
            folders=dict(self._folders),
        )


def _without_device(options: LocalOptions) -> LocalOptions:
    """Options to describe models with, on a machine whose devices and memory say nothing."""
    memory = "auto" if options.memory == "low" else options.memory
    return replace(options, device=device.CPU.name, memory=memory)
