"""The plan that `t2i batch` prints for clusters of several sizes, from the program itself."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.batch_scale import Constant
from t2i_cli.backends.local import LocalBackend
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.backends.ray import RayBackend, RayOptions, connection
from t2i_cli.batch import plan, timings
from t2i_cli.batch.local_folder import LocalFolder
from t2i_cli.batch.manifest import ManifestState
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.plan import SelectionOptions
from t2i_cli.batch.rows import BatchRow, expand_rows
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.prompts.entries import PromptEntry
from t2i_cli.request import GenerateRequest

ROWS, MODEL, SECONDS = 10_000, "sdxl", 2.0
"""What is planned; the seconds that an image took in earlier runs."""
WORKERS = (1, 8, 256)
FREE_BYTES = 10**12


class Described(Constant):
    """Tells of the model what the catalogue does."""

    def describe(self, request: GenerateRequest) -> ModelSpec:
        """The catalogue's entry."""
        return catalog.MODELS[MODEL]


class Workers:
    """In place of the pool of workers: there are so many."""

    def __init__(self, size: int) -> None:
        self.size = size

    def open(self) -> None:
        """Nothing is connected to."""


def cluster_plans() -> str:
    """The plans as a block of text."""
    entries = [PromptEntry(line, {"prompt": f"picture {line}"}) for line in range(1, ROWS + 1)]
    rows, _ = expand_rows(entries, BatchOptions(), Described())
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": cache}),
        mock.patch.object(connection, "require_ray"),
    ):
        request = rows[0].request
        cost = SECONDS / timings.relative_cost(request)
        timings.record_timing(request.model, "cuda:0", cost)
        plans = [_plan_text(rows, workers) for workers in WORKERS]
    return "```text\n" + "\n\n".join(plans) + "\n```"


def _plan_text(rows: list[BatchRow], workers: int) -> str:
    def make_pool(*_: object) -> Any:  # noqa: ANN401 - what is used of a pool
        return Workers(workers)

    options = RayOptions(local=LocalOptions(), address="ray://head:10001")
    backend = RayBackend(options, LocalBackend, make_pool)
    folder = LocalFolder(Path("out"))
    planned = plan.build_plan(
        rows, [], folder, ManifestState(), SelectionOptions(), backend.estimate
    )
    return replace(planned, free_bytes=FREE_BYTES).text()
