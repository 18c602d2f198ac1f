"""The result of a batch: counts of all its images, and the error that sets the exit code."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

from t2i_cli.batch.plan import BatchPlan
from t2i_cli.batch.runner import RunStats
from t2i_cli.durations import format_estimate
from t2i_cli.errors import ContentFilteredError, PartialError, T2IError
from t2i_cli.image_costs import ImageCosts, exact_usd, format_usd

_ERRORS_BY_CODE = {kind.code: kind for kind in T2IError.__subclasses__()}


def summarise(plan: BatchPlan, stats: RunStats, error: T2IError | None) -> dict[str, object]:
    """Counts and outcome of a batch, as `--json` and the `finished` event print them."""
    failed = _failures_by_code(plan, stats)
    withheld = failed.pop(ContentFilteredError.code, 0)
    done = plan.done + stats.made
    return {
        "folder": plan.folder.location(),
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
    } | ({"cost": stats.costs.to_json()} if stats.costs.images else {})


def _images_per_second(stats: RunStats) -> float | None:
    """The measured throughput, or else what the whole run made of its time."""
    if stats.made and stats.throughput.rate:
        return round(stats.throughput.rate, 3)
    return round(stats.made / stats.seconds, 3) if stats.seconds else None


def cost_lines(stats: RunStats) -> list[dict[str, object]]:
    """The manifest line with what a run cost; none where images are not billed one by one."""
    if not stats.costs.images:
        return []
    # To the microsecond: equal lines of several shards are taken for one.
    return [{"cost": stats.costs.to_json(), "time": datetime.now(UTC).isoformat()}]


def limit_reason(limit: float, stats: RunStats) -> str:
    """Why a run ended at --max-cost."""
    usd = format_usd(exact_usd(limit))
    return f"--max-cost {usd} is reached with {stats.costs.sum_text()}; it holds for each run."


def format_summary(counts: Mapping[str, object], costs: ImageCosts | None = None) -> str:
    """Format the counts for people, with the costs of what was made."""
    parts = [f"{counts['done']:,} of {counts['images']:,} images are done"]
    others = ("failed", "withheld", "left", "invalid")
    parts += [f"{counts[name]:,} {name}" for name in others if counts[name]]
    line = ", ".join(parts)
    if counts["made"]:
        line += f"; {counts['made']:,} made in {format_estimate(float(str(counts['seconds'])))}"
    if costs and costs.images:
        line += f", for {costs.sum_text()} (estimate; {costs.sources})"
    return f"{line}; {counts['gallery']}" if counts["gallery"] else line


def error_for(plan: BatchPlan, stats: RunStats, resume_hint: str) -> T2IError | None:
    """The error of a run, `None` if nothing failed.

    If no image was made and all failures have one code, it is that error; else PartialError.
    """
    failed = _failures_by_code(plan, stats)
    invalid = _invalid_lines(plan)
    left = len(plan.jobs) - stats.attempted if stats.over_limit else 0
    if not failed and not invalid and not left:
        return None
    total = len(plan.rows)
    reasons = "; ".join(
        f"{stats.first_messages[code]}" for code in failed if code in stats.first_messages
    )
    hint = resume_hint if left or any(code in stats.failed for code in failed) else None
    if plan.failed and not stats.failed and not left:
        hint = "--retry-failed tries those again that failed before."
    if stats.stop_reason:
        reasons = f"{stats.stop_reason} {reasons}"
    if not invalid and not left and len(failed) == 1 and plan.done + stats.made == 0:
        (code,) = failed
        kind = _ERRORS_BY_CODE.get(code, PartialError)  # another version's manifest may have others
        return kind(f"None of {total:,} images could be made. {reasons}".strip(), hint=hint)
    parts = [f"{failed.total():,} of {total:,} images failed"] * bool(failed)
    parts += [f"{left:,} of {total:,} images are left"] * bool(left)
    parts += [f"{invalid:,} line{'s' * (invalid > 1)} of the prompts file were left out"] * bool(
        invalid
    )
    return PartialError(f"{'; '.join(parts)}. {reasons}".strip(), hint=hint)


def _failures_by_code(plan: BatchPlan, stats: RunStats) -> Counter[str]:
    return Counter(plan.failed) + stats.failed


def _invalid_lines(plan: BatchPlan) -> int:
    return len({problem.line for problem in plan.problems})
