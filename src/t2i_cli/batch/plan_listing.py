"""Lists the images that a plan will make, with their prompts in full, for --dry-run."""

from collections.abc import Mapping, Sequence

from t2i_cli.batch.plan import BatchPlan

_MAX_LISTED = 100
"""Images that the text for people lists; JSON has all of them."""


def listed_images(batch_plan: BatchPlan) -> list[dict[str, object]]:
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


def listed_lines(images: Sequence[Mapping[str, object]]) -> list[str]:
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
