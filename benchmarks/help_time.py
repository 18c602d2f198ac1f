"""`t2i --help` and every subcommand's `--help` against `hf --help`; to reach: at most 0.6 of it.

Run as `python -m benchmarks.help_time` in an environment with t2i installed.
"""

import sysconfig
from pathlib import Path

from benchmarks.measure import compare, report
from t2i_cli.cli.main import command_paths

SCRIPTS = Path(sysconfig.get_path("scripts"))


def main() -> None:
    """Measure and print."""
    sides = {
        " ".join(["t2i", *path, "--help"]): [str(SCRIPTS / "t2i"), *path, "--help"]
        for path in command_paths()
    }
    report(
        "help_time",
        compare({"hf --help": [str(SCRIPTS / "hf"), "--help"], **sides}),
        "hf --help",
    )


if __name__ == "__main__":
    main()
