"""A cold one-shot image with postcard: t2i, `diffusers-cli run` and the shortest diffusers script.

To reach: at most 0.8 of either, whole process, wall clock; peak memory stands beside it. Run as
`python -m benchmarks.cold_start` in an environment with t2i installed.
"""

import json
import sys
import sysconfig
import tempfile
from pathlib import Path

from benchmarks.measure import compare, report
from t2i_cli.postcard import FOLDER

SCRIPTS = Path(sysconfig.get_path("scripts"))
PROMPT = "a red star on a white background"
STEPS = 20
ARGUMENTS = {"prompt": PROMPT, "num_inference_steps": STEPS}

SCRIPT = f"""
import sys
from diffusers import DiffusionPipeline
DiffusionPipeline.from_pretrained({str(FOLDER)!r})(**{ARGUMENTS!r}).images[0].save(sys.argv[1])
"""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = {
            "t2i generate": [
                *(str(SCRIPTS / "t2i"), "generate", PROMPT, "-m", "postcard"),
                *("--steps", str(STEPS), "--overwrite", "-o", str(folder / "t2i.png")),
            ],
            "diffusers script": [sys.executable, "-c", SCRIPT, str(folder / "script.png")],
            "diffusers-cli run": [
                *(str(SCRIPTS / "diffusers-cli"), "run", "--model", str(FOLDER)),
                *("--pipeline-kwargs", json.dumps(ARGUMENTS), "--output", str(folder / "cli.png")),
            ],
        }
        report("cold_start", compare(sides), "t2i generate")


if __name__ == "__main__":
    main()
