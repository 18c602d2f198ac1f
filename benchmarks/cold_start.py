"""A cold one-shot image with postcard: t2i, `diffusers-cli run` and the shortest diffusers script.

To reach: at most 0.65 of `diffusers-cli run`, and a refusal for want of memory at most 0.3 of it;
whole process, wall clock and processor; peak memory stands beside it. The refusal and the dry run
are of a folder that t2i does not know. Run as `python -m benchmarks.cold_start` in an environment
with t2i installed.
"""

import json
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from benchmarks.measure import compare, ratio, report
from t2i_cli.errors import OutOfMemoryError
from t2i_cli.postcard import FOLDER

SCRIPTS = Path(sysconfig.get_path("scripts"))
PROMPT = "a red star on a white background"
STEPS = 20
ARGUMENTS = {"prompt": PROMPT, "num_inference_steps": STEPS}
IMAGE, PEER = "t2i generate", "diffusers-cli run"
FIGURES = ("wall", "cpu")
REFUSAL, DRY_RUN = "t2i generate, refused", "t2i generate --dry-run"

SCRIPT = f"""
import sys
from diffusers import DiffusionPipeline
DiffusionPipeline.from_pretrained({str(FOLDER)!r})(**{ARGUMENTS!r}).images[0].save(sys.argv[1])
"""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = shutil.copytree(FOLDER, folder / "own")
        generate = [str(SCRIPTS / "t2i"), "generate", PROMPT, "--steps", str(STEPS), "-m"]
        sides = {
            IMAGE: [*generate, "postcard", "--overwrite", "-o", str(folder / "t2i.png")],
            "diffusers script": [sys.executable, "-c", SCRIPT, str(folder / "script.png")],
            PEER: [
                *(str(SCRIPTS / "diffusers-cli"), "run", "--model", str(FOLDER)),
                *("--pipeline-kwargs", json.dumps(ARGUMENTS), "--output", str(folder / "cli.png")),
            ],
            REFUSAL: [*generate, str(own), "--size", "16384x16384"],
            DRY_RUN: [*generate, str(own), "--dry-run"],
        }
        samples = compare(sides, statuses={REFUSAL: OutOfMemoryError.exit_code})
    report("cold_start", samples, IMAGE)
    for side in (REFUSAL, DRY_RUN):
        of_peer = (f"{ratio(samples[side], samples[PEER], figure):.2f}" for figure in FIGURES)
        print(f"{side} / {PEER}: {', '.join(of_peer)} (wall, cpu)")


if __name__ == "__main__":
    main()
