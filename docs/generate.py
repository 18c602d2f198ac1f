"""Writes what docs and README say of the command line from the program itself.

`python docs/generate.py` writes docs/cli.md and the marked blocks of README.md; with `--check` it
only compares, and fails where they differ.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from t2i_cli.cli.main import command_paths
from t2i_cli.models import catalog, schedulers
from t2i_cli.request_field import RequestField
from t2i_cli.request_fields import FIELDS
from t2i_cli.settings import store

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}


def help_text(path: tuple[str, ...]) -> str:
    """What `t2i PATH --help` prints, 100 columns wide."""
    command = [sys.executable, "-m", "t2i_cli", *path, "--help"]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.strip()


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reference() -> str:
    """docs/cli.md: every command's help."""
    parts = ["# Command reference\n\nWritten from the program by `docs/generate.py`.\n"]
    for path in command_paths():
        name = " ".join(["t2i", *path])
        parts.append(f"## {name}\n\n```text\n{help_text(path)}\n```\n")
    return "\n".join(parts)


def models_table() -> str:
    """The catalogue."""
    return table(
        ("name", "repository", "licence", "download", "steps", "guidance", "size", "token"),
        (
            (
                f"`{spec.name}`",
                spec.repo or "inside t2i",
                spec.licence,
                f"{spec.download_bytes / 1e9:.1f} GB" if spec.download_bytes else "none",
                spec.steps,
                "none" if spec.guidance_argument is None else spec.guidance_scale,
                f"{spec.width}×{spec.height}",
                "needed" if spec.gated else "",
            )
            for spec in catalog.MODELS.values()
        ),
    )


def schedulers_table() -> str:
    """The short names of schedulers, for either kind of model."""
    names = {**schedulers.NOISE_SCHEDULERS, **schedulers.FLOW_SCHEDULERS}
    return table(
        ("name", "noise-predicting models (SD 1.5, SDXL)", "flow-matching models (SD 3.5, FLUX)"),
        (
            (
                f"`{name}`",
                schedulers.NOISE_SCHEDULERS[name].cls
                if name in schedulers.NOISE_SCHEDULERS
                else "",
                schedulers.FLOW_SCHEDULERS[name].cls if name in schedulers.FLOW_SCHEDULERS else "",
            )
            for name in names
        ),
    )


def settings_table() -> str:
    """The keys of the configuration file."""
    return table(
        ("key", "environment", "takes"),
        ((f"`{s.key}`", f"`{s.variable}`", s.takes) for s in store.SETTINGS.values()),
    )


def fields_table() -> str:
    """The fields of a request: what they are called where, and who takes them."""
    return table(
        (
            "field",
            "takes",
            "option",
            "OpenAI's images API",
            "Vertex AI",
            "AUTOMATIC1111",
        ),
        (
            (
                f"`{name}`",
                field_values(known),
                ", ".join(f"`{flag}`" for flag in known.flags),
                "all" if name in {"prompt", "model"} else dialects_of(known),
                "all" if name == "prompt" else ", ".join(sorted(known.servings)),
                known.infotext or "",
            )
            for name, known in FIELDS.items()
        ),
    )


def field_values(known: RequestField) -> str:
    """A field's values in a few words."""
    kind = {str: "text", int: "whole number", float: "number"}.get(known.kind, "text or JSON")
    span = f", {known.low} to {known.high:.10g}" if known.high is not None else ""
    none = "" if known.unset is None else f"; {known.unset} is none"
    return kind + span + (f" {known.unit}" if known.unit else "") + none


def dialects_of(known: RequestField) -> str:
    """The dialects that take a field, with its name in each where that is another."""
    return ", ".join(
        dialect if theirs == known.name else f"{dialect} (`{theirs}`)"
        for dialect, theirs in known.dialects.items()
    )


BLOCKS = {
    "fields": fields_table,
    "generate-help": lambda: f"```text\n{help_text(('generate',))}\n```",
    "models": models_table,
    "schedulers": schedulers_table,
    "settings": settings_table,
}


def filled(text: str) -> str:
    """A page with every marked block written anew."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{BLOCKS[match[1]]()}\n<!-- /{match[1]} -->"

    return re.sub(r"<!-- ([a-z-]+) -->\n.*?<!-- /\1 -->", block, text, flags=re.DOTALL)


def main() -> int:
    """Write the pages, or compare them; the exit code."""
    pages = {ROOT / "docs" / "cli.md": reference()}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        if page.name != "cli.md":
            pages[page] = filled(page.read_text(encoding="utf-8"))
    stale = [p for p, text in pages.items() if not p.exists() or p.read_text("utf-8") != text]
    for page in stale:
        sys.stdout.write(f"{page.relative_to(ROOT)} is not what the program says\n")
        if "--check" not in sys.argv:
            page.write_text(pages[page], encoding="utf-8")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
