"""Print what t2i keeps of each text-to-image class: `python -m tests.family_table [NAME ...]`.

Markdown goes to standard output; `--json FILE` writes the verdicts with what was seen, and `--docs`
writes the table into docs/models.md.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from t2i_cli.models import libraries
from tests import families
from tests.family_promises import PROMISES, Verdict, measure
from tests.family_runs import Family

Row = dict[str, Verdict]

DOCS = Path(__file__).parent.parent / "docs" / "models.md"
SIGNS = {"kept": "yes", "refused": "refused", "broken": "**no**", "unknown": "-"}
"""What the table says of a promise; `unknown` is for want of a package."""
_BLOCK = re.compile(
    "(?<=<!-- measured: families -->\n).*(?=\n<!-- /measured: families -->)", re.DOTALL
)


def measure_class(name: str, root: Path) -> Row:
    """The verdict on every promise for one class, by its tiny pipeline in a folder of `root`."""
    family = Family(name, families.save(name, root / name))
    try:
        return {promise: measure(family, promise) for promise in PROMISES}
    finally:
        family.close()


def markdown(rows: Mapping[str, Row]) -> str:
    """The table: a line for each class, a column for each promise."""
    lines = ["| Class | " + " | ".join(PROMISES) + " |", "|---" * (len(PROMISES) + 1) + "|"]
    for name, row in sorted(rows.items()):
        cells = " | ".join(SIGNS[row[promise].state] for promise in PROMISES)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def summary(rows: Mapping[str, Row]) -> str:
    """How many classes hold everything, make a picture, and want a package."""
    states = {name: [verdict.state for verdict in row.values()] for name, row in rows.items()}
    runs = [name for name in rows if "unknown" not in states[name]]
    made = [name for name in runs if rows[name]["picture"].state == "kept"]
    whole = [name for name in made if all(rows[name][p].holds for p in PROMISES)]
    return (
        f"{len(rows)} classes, {len(runs)} that diffusers runs here; "
        f"t2i makes a picture of {len(made)} and keeps every promise for {len(whole)}."
    )


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure the classes that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="classes; all without any")
    parser.add_argument("--json", type=Path, help="write the verdicts to this file")
    parser.add_argument("--folder", type=Path, help="keep the tiny pipelines here")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/models.md")
    options = parser.parse_args(None if arguments is None else list(arguments))
    rows: dict[str, Row] = {}
    libraries.import_diffusers()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        for name in options.names or sorted(families.builders()):
            started = time.monotonic()
            rows[name] = measure_class(name, root)
            broken = [p for p, verdict in rows[name].items() if verdict.state == "broken"]
            seconds = f"{time.monotonic() - started:.1f} s"
            print(f"{name} {seconds} {', '.join(broken)}", file=sys.stderr, flush=True)  # noqa: T201
    found_table = f"{markdown(rows)}\n\n{summary(rows)}"
    if options.docs:
        text = DOCS.read_text(encoding="utf-8")
        DOCS.write_text(_BLOCK.sub(lambda _: found_table, text), encoding="utf-8")
    if options.json:
        found = {
            name: {promise: asdict(verdict) for promise, verdict in row.items()}
            for name, row in rows.items()
        }
        options.json.write_text(json.dumps(found, indent=1))
    print(found_table)  # noqa: T201


if __name__ == "__main__":
    main()
