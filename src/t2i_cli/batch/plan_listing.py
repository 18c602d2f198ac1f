"""Lists the images that a plan will make, with their prompts in full, for --dry-run."""

from collections.abc import Mapping, Sequence

from t2i_cli.batch.plan import BatchPlan
from t2i_cli.terminal.console import Console

_MAX_LISTED = 100
"""Images that the text for people lists; JSON has all of them."""


def print_plan(batch_plan: BatchPlan, console: Console) -> None:
    """Print a plan and the images that it will make."""
    images = _listed_images(batch_plan)
    if console.json:
        console.result_json(batch_plan.to_json() | {"rows": images})
    else:
        console.result("\n".join([batch_plan.text(), *_listed_lines(images)]))


def _listed_images(batch_plan: BatchPlan) -> list[dict[str, object]]:
    """The images to make, in the order of their rows."""
    return [
        {
            "index": job.row.index,
            "line": job.row.line,
            "id": job.row.id,
            "file": job.file,
            "seed": job.row.request.seed,
            "prompt": job.row.request.prompt,
            "negative_prompt": job.row.request.negative_prompt,
        }
        for job in sorted(batch_plan.jobs, key=lambda job: job.row.index)
    ]


def _listed_lines(images: Sequence[Mapping[str, object]]) -> list[str]:
    """The images as text for people: a line for each, up to _MAX_LISTED."""
    lines = [
        f"  line {image['line']}, seed {image['seed']}: {_one_line(image['prompt'])}"
        + (f" (not: {_one_line(image['negative_prompt'])})" if image["negative_prompt"] else "")
        for image in images[:_MAX_LISTED]
    ]
    if more := len(images) - len(lines):
        lines.append(f"  and {more:,} more, which --json lists")
    return lines


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
