"""Health probes and Prometheus metrics: /healthz, /readyz, /metrics."""

import time
from collections import Counter
from collections.abc import Iterator

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from t2i_cli.server import responses
from t2i_cli.server.connections import DROP_REASONS, ConnectionTable
from t2i_cli.server.engine import Engine
from t2i_cli.server.jobs import ImageJob, JobObserver

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_IMAGES = (1, 2, 4, 8, 16, 32)
_WORKER_COUNTERS = {
    "images": "Images that the worker made.",
    "seconds": "Seconds of making them.",
    "failures": "Images that failed with the worker.",
    "losses": "How often the worker was lost.",
}
"""Counters by worker: fields of WorkerReport, and what they are."""


def health_router(engine: Engine, connections: ConnectionTable) -> APIRouter:
    """GET /healthz, /readyz and /metrics."""
    api = APIRouter(tags=["health"])
    registry = _registry(engine, connections)

    @api.head("/healthz", include_in_schema=False)
    @api.get("/healthz")
    async def healthz() -> Response:
        """200 while the process lives."""
        return responses.json_response({"status": "alive"})

    @api.head("/readyz", include_in_schema=False)
    @api.get("/readyz", responses={503: {"description": "It loads, it stops, or it cannot load."}})
    async def readyz() -> Response:
        """200 while the model can serve."""
        waits = "failed" if engine.failure else "stopping" if engine.stopping else "loading"
        answer: dict[str, object] = {"status": "ready" if engine.ready else waits}
        if reports := engine.worker_reports():
            answer["workers"] = dict(Counter(report.state for report in reports))
        return responses.json_response(answer, 200 if engine.ready else 503)

    @api.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus's text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return api


class _ConnectionCounters(Collector):
    """Counters that the table of connections keeps itself."""

    def __init__(self, connections: ConnectionTable) -> None:
        self._connections = connections

    def collect(self) -> Iterator[Metric]:
        dropped = CounterMetricFamily(
            "t2i_connections_dropped",
            "Connections ended: crowded gave way to another, slow waited too long.",
            labels=["reason"],
        )
        for reason in DROP_REASONS:
            dropped.add_metric([reason], self._connections.dropped[reason])
        yield dropped
        yield CounterMetricFamily(
            "t2i_connections_refused",
            "Requests for which there was no place.",
            value=self._connections.refused,
        )


class _WorkerFigures(Collector):
    """What each worker has made, by its number: a worker that is replaced adds no label."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        reports = self._engine.worker_reports()
        if not reports:
            return
        for name, text in _WORKER_COUNTERS.items():
            counter = CounterMetricFamily(f"t2i_worker_{name}", text, labels=["worker"])
            for report in reports:
                counter.add_metric([str(report.number)], getattr(report, name))
            yield counter
        up = GaugeMetricFamily("t2i_worker_up", "1 while the worker can work.", labels=["worker"])
        for report in reports:
            up.add_metric([str(report.number)], report.state in {"ready", "busy"})
        yield up


class _Metrics(JobObserver):
    """Counters and histograms of jobs, images and batches."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refused = PrometheusCounter(
            "t2i_jobs_refused", "Jobs that found the queue full.", registry=registry
        )
        self._images = PrometheusCounter(
            "t2i_images",
            "Images by outcome: made, or why not.",
            ["outcome"],
            registry=registry,
        )
        self._job_seconds = Histogram(
            "t2i_job_seconds",
            "Seconds from a job's acceptance to its end.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._pass_images = Histogram(
            "t2i_pass_images", "Images of a pass.", buckets=_IMAGES, registry=registry
        )
        self._pass_seconds = Histogram(
            "t2i_pass_seconds", "Seconds of a pass.", buckets=_SECONDS, registry=registry
        )

    def on_rejected(self) -> None:
        self._refused.inc()

    def on_finished(self, job: ImageJob) -> None:
        self._job_seconds.observe(time.monotonic() - job.accepted)
        for outcome, images in job.outcomes.items():
            self._images.labels(outcome).inc(images)

    def on_batch_finished(self, images: int, seconds: float) -> None:
        self._pass_images.observe(images)
        self._pass_seconds.observe(seconds)


def _registry(engine: Engine, connections: ConnectionTable) -> CollectorRegistry:
    """A registry with the engine's metrics, counting from now on."""
    registry = CollectorRegistry()
    for name, text, value in (
        ("t2i_jobs_waiting", "Jobs of which nothing has begun.", lambda: engine.waiting),
        ("t2i_images_running", "Images that are being made.", lambda: engine.running),
        ("t2i_ready", "1 while the model can serve.", lambda: engine.ready),
        ("t2i_connections_max", "Connections at a time, at most.", lambda: connections.most),
        (
            "t2i_connections_admitted",
            "Connections on which a request was let in.",
            lambda: connections.admitted,
        ),
        (
            "t2i_connections_unadmitted",
            "Connections on which no request was let in.",
            lambda: connections.unadmitted,
        ),
    ):
        Gauge(name, text, registry=registry).set_function(value)
    registry.register(_ConnectionCounters(connections))
    registry.register(_WorkerFigures(engine))
    engine.batcher.observers.append(_Metrics(registry))
    return registry
