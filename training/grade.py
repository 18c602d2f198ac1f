"""Grades pictures by measuring their pixels: one picture by its prompt, or the whole model.

`python -m training.grade --image FILE --prompt TEXT` exits 1 if the picture is not of its prompt.
Without them, the model in the package draws captions of scenes that training never saw, and a
table and a JSON file tell how often each thing came out right.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from PIL import Image

from training.captions import caption
from training.files import MODEL, RUNS
from training.prompt_adherence import Grade, grade_image
from training.scenes import sample

__all__ = ["Grade", "grade_image", "held_out_captions", "tally"]

FAMILIES: Final = ("one", "two", "landscape")
TARGETS: Final = {
    ("one", "background"): 0.99,
    ("one", "colour"): 0.98,
    ("one", "shape"): 0.95,
    ("two", "places"): 0.95,
    ("two", "shape"): 0.85,
    ("landscape", "time"): 0.97,
    ("landscape", "ground"): 0.97,
    ("landscape", "thing"): 0.90,
}


def held_out_captions(count: int, seed: int) -> list[tuple[str, str]]:
    """As many (family, caption) of each family in turn, of combinations not trained on."""
    rng = random.Random(seed)
    families = [FAMILIES[number % len(FAMILIES)] for number in range(count)]
    return [(name, caption(sample(rng, name, want_held_out=True), rng)) for name in families]


def tally(graded: Iterable[tuple[str, Grade]]) -> dict[str, dict[str, dict[str, float]]]:
    """Right answers, questions and their ratio, by family and check."""
    right: Counter[tuple[str, str]] = Counter()
    asked: Counter[tuple[str, str]] = Counter()
    for family, grade in graded:
        for check, passed in ({"everything": grade.passed} | grade.checks).items():
            asked[family, check] += 1
            right[family, check] += passed
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (family, check), count in asked.items():
        got = right[family, check]
        row: dict[str, float] = {"right": got, "of": count, "share": round(got / count, 4)}
        if target := TARGETS.get((family, check)):
            row["target"] = target
        table.setdefault(family, {})[check] = row
    return table


def render(table: dict[str, dict[str, dict[str, float]]]) -> str:
    """The tally as a Markdown table."""
    lines = ["| family | check | right | share | wanted |", "|---|---|---|---|---|"]
    for family in FAMILIES:
        for check, row in table.get(family, {}).items():
            wanted = f"{row['target']:.0%}" if "target" in row else ""
            counts = f"{row['right']:.0f} of {row['of']:.0f}"
            lines.append(f"| {family} | {check} | {counts} | {row['share']:.1%} | {wanted} |")
    return "\n".join(lines)


def pictures(
    captions: list[str], options: argparse.Namespace
) -> Iterator[tuple[Image.Image, float]]:
    """The model's picture of each caption, and the seconds it took."""
    import torch

    from training.untyped import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(options.model)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(captions), options.batch):
        prompts = captions[start : start + options.batch]
        seeds = range(options.seed + start, options.seed + start + len(prompts))
        begun = time.monotonic()
        images = pipe(
            prompts,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
        seconds = (time.monotonic() - begun) / len(prompts)
        yield from ((image, seconds) for image in images)


def grade_model(options: argparse.Namespace) -> dict[str, Any]:
    """Draw and judge held-out captions; writes the report and a sheet of the pictures."""
    asked = held_out_captions(options.count, options.seed)
    graded, failures, seconds, drawn = [], [], 0.0, []
    made = pictures([text for _, text in asked], options)
    for number, ((family, text), (image, took)) in enumerate(zip(asked, made, strict=True)):
        grade = grade_image(image, text)
        graded.append((family, grade))
        seconds += took
        drawn.append(image)
        if not grade.passed:
            wrong = [check for check, passed in grade.checks.items() if not passed]
            failures.append({"number": number, "caption": text, "wrong": wrong, "seen": grade.seen})
    report = {
        "captions": options.count,
        "seed": options.seed,
        "steps": options.steps,
        "guidance": options.guidance,
        "seconds_per_image": round(seconds / options.count, 3),
        "table": tally(graded),
        "failures": failures,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sheet(drawn).save(options.json.with_suffix(".png"))
    return report


def sheet(images: list[Image.Image], columns: int = 12) -> Image.Image:
    """The pictures side by side, in rows."""
    size = 132
    whole = Image.new("RGB", (columns * size, -(-len(images) // columns) * size), (128, 128, 128))
    for number, image in enumerate(images):
        whole.paste(image, (number % columns * size + 2, number // columns * size + 2))
    return whole


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.grade", description=__doc__)
    parser.add_argument("--image", type=Path, help="a picture to judge alone")
    parser.add_argument("--prompt", help="what it should show")
    parser.add_argument("--model", type=Path, default=MODEL, help="model folder to grade")
    parser.add_argument("--count", type=int, default=240, help="held-out captions to draw")
    parser.add_argument("--seed", type=int, default=1000, help="of captions and starting noise")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=6, help="pictures drawn at once")
    parser.add_argument("--json", type=Path, default=RUNS / "grade.json", help="report to write")
    options = parser.parse_args(arguments)
    if (options.image is None) != (options.prompt is None):
        parser.error("--image and --prompt go together")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 if the picture passed or the model was graded, else 1."""
    options = _parse(arguments)
    if options.image is None:
        report = grade_model(options)
        sys.stdout.write(f"{render(report['table'])}\n")
        return 0
    try:
        with Image.open(options.image) as image:
            grade = grade_image(image, options.prompt)
    except ValueError as error:
        sys.stderr.write(f"grade: {error}\n")
        return 1
    for check, passed in grade.checks.items():
        sys.stdout.write(f"{'right' if passed else 'WRONG'}  {check}\n")
    sys.stdout.write(f"seen: {grade.seen}\n")
    return 0 if grade.passed else 1


if __name__ == "__main__":
    sys.exit(main())
