"""What `mutmut run` found, by module; fails where too few mutants were killed (docs/testing.md)."""

import json
import sys
from collections import Counter
from pathlib import Path

from mutmut.stats import status_by_exit_code

ROOT = Path("mutants/src/t2i_cli")
KILLED = {"killed", "timeout"}
"""A mutant that never ends is noticed as well."""
LEAST = 0.85


def statuses() -> dict[str, Counter[str]]:
    """How many mutants of each module ended in which of mutmut's ways."""
    found: dict[str, Counter[str]] = {}
    for file in sorted(ROOT.rglob("*.py.meta")):
        codes = json.loads(file.read_text())["exit_code_by_key"].values()
        name = file.relative_to(ROOT).as_posix().removesuffix(".meta")
        found[name] = Counter(status_by_exit_code[code] for code in codes)
    return {name: counts for name, counts in found.items() if counts}


def main() -> None:
    """Print a row of Markdown for each module, and the total."""
    found = statuses()
    whole = sum(found.values(), Counter[str]())
    lines = ["| module | killed | lived | killed |", "| --- | --- | --- | --- |"]
    for name, counts in [*found.items(), ("all", whole)]:
        killed = sum(counts[status] for status in KILLED)
        share = killed / counts.total()
        lines.append(f"| {name} | {killed:,} | {counts.total() - killed:,} | {share:.1%} |")
    sys.stdout.write("\n".join(lines) + "\n")
    if unknown := whole["not checked"]:
        sys.exit(f"{unknown} mutants were not tried.")
    if sum(whole[status] for status in KILLED) < LEAST * whole.total():
        sys.exit(f"Fewer than {LEAST:.0%} were killed.")


if __name__ == "__main__":
    main()
