"""How a batch ended: the account of all its images, and the error that its exit code comes from."""

from collections import Counter
from collections.abc import Mapping

from t2i_cli.batch.plan import BatchPlan, format_estimate
from t2i_cli.batch.runner import RunStats
from t2i_cli.errors import ContentFilteredError, PartialError, T2IError

_BY_CODE = {kind.code: kind for kind in T2IError.__subclasses__()}


def summarise(plan: BatchPlan, tally: RunStats, error: T2IError | None) -> dict[str, object]:
    """The account: what `--json` prints and the `finished` event tells."""
    failed = _failed(plan, tally)
    withheld = failed.pop(ContentFilteredError.code, 0)
    done = plan.done + tally.made
    return {
        "folder": str(plan.folder),
        "images": len(plan.rows),
        "done": done,
        "made": tally.made,
        "failed": failed.total(),
        "withheld": withheld,
        "left": len(plan.rows) - done - failed.total() - withheld,
        "invalid": _invalid(plan),
        "seconds": round(tally.seconds, 3),
        "images_per_second": round(tally.made / tally.seconds, 3) if tally.seconds else None,
        "failures": dict(failed),
        "stopped": tally.stopped,
        "exit": error.exit_code if error else 0,
    }


def format_summary(account: Mapping[str, object]) -> str:
    """The account for a person."""
    parts = [f"{account['done']:,} of {account['images']:,} images are done"]
    others = ("failed", "withheld", "left", "invalid")
    parts += [f"{account[name]:,} {name}" for name in others if account[name]]
    line = ", ".join(parts)
    if account["made"]:
        line += f"; {account['made']:,} made in {format_estimate(float(str(account['seconds'])))}"
    return f"{line}; {account['gallery']}" if account["gallery"] else line


def error_for(plan: BatchPlan, tally: RunStats, again: str) -> T2IError | None:
    """The error for images that failed: the one they share if there is no other outcome."""
    failed = _failed(plan, tally)
    invalid = _invalid(plan)
    if not failed and not invalid:
        return None
    total = len(plan.rows)
    reasons = "; ".join(f"{tally.first[code]}" for code in failed if code in tally.first)
    hint = again if any(code in tally.failed for code in failed) else None
    if plan.failed and not tally.failed:
        hint = "--retry-failed tries those again that failed before."
    if tally.stopped:
        reasons = f"{tally.stopped} {reasons}"
    if not invalid and len(failed) == 1 and plan.done + tally.made == 0:
        (code,) = failed
        kind = _BY_CODE.get(code, PartialError)  # another version's manifest may have others
        return kind(f"None of {total:,} images could be made. {reasons}".strip(), hint=hint)
    parts = [f"{failed.total():,} of {total:,} images failed"] * bool(failed)
    parts += [f"{invalid:,} line{'s' * (invalid > 1)} of the prompts file were left out"] * bool(
        invalid
    )
    return PartialError(f"{'; '.join(parts)}. {reasons}".strip(), hint=hint)


def _failed(plan: BatchPlan, tally: RunStats) -> Counter[str]:
    return Counter(plan.failed) + tally.failed


def _invalid(plan: BatchPlan) -> int:
    return len({problem.line for problem in plan.problems})
