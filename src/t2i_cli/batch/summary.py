"""The result of a batch: counts of all its images, and the error that sets the exit code."""

from collections import Counter
from collections.abc import Mapping

from t2i_cli.batch.plan import BatchPlan
from t2i_cli.batch.runner import RunStats
from t2i_cli.durations import format_estimate
from t2i_cli.errors import ContentFilteredError, PartialError, T2IError

_ERRORS_BY_CODE = {kind.code: kind for kind in T2IError.__subclasses__()}


def summarise(plan: BatchPlan, stats: RunStats, error: T2IError | None) -> dict[str, object]:
    """Counts and outcome of a batch, as `--json` and the `finished` event print them."""
    failed = _failures_by_code(plan, stats)
    withheld = failed.pop(ContentFilteredError.code, 0)
    done = plan.done + stats.made
    return {
        "folder": str(plan.folder),
        "images": len(plan.rows),
        "done": done,
        "made": stats.made,
        "failed": failed.total(),
        "withheld": withheld,
        "left": len(plan.rows) - done - failed.total() - withheld,
        "invalid": _invalid_lines(plan),
        "seconds": round(stats.seconds, 3),
        "images_per_second": _images_per_second(stats),
        "failures": dict(failed),
        "notes": stats.notes.to_json(),
        "stopped": stats.stop_reason,
        "exit": error.exit_code if error else 0,
    }


def _images_per_second(stats: RunStats) -> float | None:
    """The measured throughput, or else what the whole run made of its time."""
    if stats.made and stats.throughput.rate:
        return round(stats.throughput.rate, 3)
    return round(stats.made / stats.seconds, 3) if stats.seconds else None


def format_summary(counts: Mapping[str, object]) -> str:
    """Format the counts for people."""
    parts = [f"{counts['done']:,} of {counts['images']:,} images are done"]
    others = ("failed", "withheld", "left", "invalid")
    parts += [f"{counts[name]:,} {name}" for name in others if counts[name]]
    line = ", ".join(parts)
    if counts["made"]:
        line += f"; {counts['made']:,} made in {format_estimate(float(str(counts['seconds'])))}"
    return f"{line}; {counts['gallery']}" if counts["gallery"] else line


def error_for(plan: BatchPlan, stats: RunStats, resume_hint: str) -> T2IError | None:
    """The error of a run, `None` if nothing failed.

    If no image was made and all failures have one code, it is that error; else PartialError.
    """
    failed = _failures_by_code(plan, stats)
    invalid = _invalid_lines(plan)
    if not failed and not invalid:
        return None
    total = len(plan.rows)
    reasons = "; ".join(
        f"{stats.first_messages[code]}" for code in failed if code in stats.first_messages
    )
    hint = resume_hint if any(code in stats.failed for code in failed) else None
    if plan.failed and not stats.failed:
        hint = "--retry-failed tries those again that failed before."
    if stats.stop_reason:
        reasons = f"{stats.stop_reason} {reasons}"
    if not invalid and len(failed) == 1 and plan.done + stats.made == 0:
        (code,) = failed
        kind = _ERRORS_BY_CODE.get(code, PartialError)  # another version's manifest may have others
        return kind(f"None of {total:,} images could be made. {reasons}".strip(), hint=hint)
    parts = [f"{failed.total():,} of {total:,} images failed"] * bool(failed)
    parts += [f"{invalid:,} line{'s' * (invalid > 1)} of the prompts file were left out"] * bool(
        invalid
    )
    return PartialError(f"{'; '.join(parts)}. {reasons}".strip(), hint=hint)


def _failures_by_code(plan: BatchPlan, stats: RunStats) -> Counter[str]:
    return Counter(plan.failed) + stats.failed


def _invalid_lines(plan: BatchPlan) -> int:
    return len({problem.line for problem in plan.problems})
