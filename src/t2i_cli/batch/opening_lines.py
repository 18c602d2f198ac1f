"""The manifest lines that a run writes before its first image."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from t2i_cli.batch.earlier_requests import change_lines
from t2i_cli.batch.manifest import ManifestState
from t2i_cli.batch.plan import BatchPlan
from t2i_cli.batch.revision_pins import ModelRevision
from t2i_cli.prompts import PromptsFile


def opening_lines(
    prompts_file: PromptsFile,
    batch_plan: BatchPlan,
    state: ManifestState,
    pins: Mapping[ModelRevision, str],
) -> list[dict[str, object]]:
    """Lines for new pins, invalid rows, unlisted images, and what is of an earlier request by now.

    Raises T2IError if the manifests cannot be read.
    """
    return [
        *_pin_lines(pins),
        *_invalid_lines(prompts_file, batch_plan, state),
        *change_lines(batch_plan.folder, batch_plan.change),
        *_unlisted_lines(batch_plan),
    ]


def _pin_lines(pins: Mapping[ModelRevision, str]) -> list[dict[str, object]]:
    return [
        {"model": model, "revision": revision, "pin": commit}
        for (model, revision), commit in pins.items()
    ]


def _invalid_lines(
    prompts_file: PromptsFile, batch_plan: BatchPlan, state: ManifestState
) -> list[dict[str, object]]:
    """Lines for invalid rows that are new, and for those that are invalid no longer."""
    problems = {(p.line, p.field, p.message): p for p in batch_plan.problems}
    added = [
        {"status": "invalid", "source": prompts_file.name, **asdict(problem)}
        for key, problem in problems.items()
        if key not in state.invalid
    ]
    ended = [
        {"status": "invalid", "line": line, "field": field, "message": message, "earlier": True}
        for line, field, message in sorted(state.invalid - problems.keys(), key=str)
    ]
    return [*added, *ended]


def _unlisted_lines(batch_plan: BatchPlan) -> list[dict[str, object]]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        {
            "id": image.row.id,
            "index": image.row.index,
            "line": image.row.line,
            "status": "done",
            "file": image.file,
            "bytes": image.bytes,
            "sha256": image.sha256,
            "lock": dict(image.lock),
            "request": image.row.request.to_json(),
            "time": now,
        }
        for image in batch_plan.unlisted
    ]
