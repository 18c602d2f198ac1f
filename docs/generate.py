"""Writes what docs and README say of the command line from the program itself.

`python docs/generate.py` writes docs/cli.md, the marked blocks of README.md and the tables of
src/t2i_cli/vertex/; with `--check` it only compares, and fails where they differ.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from t2i_cli.backends.local import load_target, memory, planning
from t2i_cli.backends.local.device import Device, MemoryInfo
from t2i_cli.backends.local.load_target import LoadTarget
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.cli.main import command_paths
from t2i_cli.errors import OutOfMemoryError
from t2i_cli.models import catalog, image_prices, schedulers
from t2i_cli.models.weights import ComponentWeights
from t2i_cli.request_field import RequestField
from t2i_cli.request_fields import FIELDS
from t2i_cli.settings import store
from t2i_cli.vertex import machine_types

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import network_shapes, vertex_hardware  # noqa: E402 - they lie beside this folder
from docs.cluster_plans import cluster_plans  # noqa: E402

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


CARDS_GB = (8, 12, 16, 24, 80)
"""Memory of the cards that docs/memory.md tells plans for."""
_CARD_IN_USE = 0.06
"""Fraction of a card's memory that the driver, the CUDA context and a desktop take."""


def plans_table() -> str:
    """What a plan decides for each model of the catalogue on cards of several sizes."""
    host = 64 * 2**30
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, shape in network_shapes.read_shapes().items():
            target = _planned_target(name, shape, Path(temporary) / name)
            cells = []
            for card in CARDS_GB:
                total = card * 2**30
                found = MemoryInfo(free=int(total * (1 - _CARD_IN_USE)), total=total)
                cells.append(_plan_cell(target, found, host))
            rows.append((f"`{name}`", target.dtype, *cells))
    return table(("model", "precision", *(f"{card} GB" for card in CARDS_GB)), rows)


def _planned_target(name: str, shape: Mapping[str, Any], folder: Path) -> LoadTarget:
    """A model of the catalogue as it is loaded on a GPU, known by its configs and sizes only."""
    network_shapes.save_configs(shape, folder)
    parts = shape["components"]
    dtype = "float16" if "unet" in parts else "bfloat16"
    found = {
        part: ComponentWeights(elements={"F16": facts["parameters"]}, largest=facts["largest"])
        for part, facts in parts.items()
    }
    return LoadTarget(
        spec=catalog.MODELS[name],
        device=Device(name="cuda:0", kind="cuda", label="GPU"),
        dtype=dtype,
        folder=folder,
        sizes=load_target.loaded_sizes(folder, dtype, found),
        layer=2 * max(facts.largest for facts in found.values()),
    )


def _plan_cell(target: LoadTarget, found: MemoryInfo, host: int) -> str:
    """The measures and the peak of one plan."""
    size = (target.spec.width or 0, target.spec.height or 0)
    try:
        plan = planning.plan_for_size(
            target, size, LocalOptions(), found, host, steps=target.spec.steps or 0
        )
    except OutOfMemoryError:
        return "does not fit"
    tile = {memory.VAE_TILING: f"{memory.VAE_TILING} ({plan.vae_tile} px)"}
    measures = ", ".join(tile.get(measure, measure) for measure in plan.measures)
    return f"{measures or 'none'}; {(plan.peak_mib or 0) / 1024:.1f} GiB"


COST_MODEL, COST_SECONDS = "sdxl", {"RTX 4090": 8, "L4": 10}
"""Three times what the cards take at best for one image (docs/performance.md; L4: 121 TFLOP/s)."""
COST_MACHINE = "g2-standard-4"
"""A machine with one L4."""
COST_DEPLOYMENT = 20 * 60
"""Seconds from the deployment to the first image, and the removal: between 5 and 30 minutes."""
COST_POWER, COST_KWH = 0.5, 0.30
"""Kilowatts of a computer with such a card at work, and USD for a kilowatt-hour."""
COST_IMAGE = ("gemini", "gemini-3.1-flash-image", "1K")
"""Backend, model and class of sizes of images that are billed one by one."""


def costs_table() -> str:
    """Which way of making images costs what."""
    backend, model, size = COST_IMAGE
    each = image_prices.built_in_table(backend).price_of(model, size)
    hour = machine_types.BUILT_IN.machines[COST_MACHINE]
    work = {"one picture": 1, "1,000 pictures": 1000, "a day of 20 an hour": 480}
    local = [n * COST_SECONDS["RTX 4090"] / 3600 * COST_POWER * COST_KWH for n in work.values()]
    busy = [COST_DEPLOYMENT + n * COST_SECONDS["L4"] for n in (1, 1000)]
    endpoint = [seconds / 3600 * hour for seconds in (*busy, COST_DEPLOYMENT + 24 * 3600)]
    ways = {
        "this machine (`RTX 4090`), electricity alone": local,
        f"an endpoint (`{COST_MACHINE}`, {hour:.2f} USD an hour)": endpoint,
        "the same by flex-start": endpoint,
        f"by the picture (`{model}`, {size}, {each} USD)": [n * (each or 0) for n in work.values()],
    }
    rows = (
        (way, *(f"{usd:,.2f}" if usd >= 0.01 else "under 0.01" for usd in sums))
        for way, sums in ways.items()
    )
    return table(("USD", *work), rows)


def model_memory() -> str:
    """vertex/model_memory.json: what each model of the catalogue needs with all of it on a card."""
    plenty = MemoryInfo(free=2**50, total=2**50)
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, shape in network_shapes.read_shapes().items():
            target = _planned_target(name, shape, Path(temporary) / name)
            size = (target.spec.width or 0, target.spec.height or 0)
            # Without steps, no CUDA graphs are counted: they are left out where they do not fit.
            plan = planning.plan_for_size(target, size, LocalOptions(), plenty, plenty.free)
            rows[name] = {"weights_mib": plan.weights_mib, "peak_mib": plan.peak_mib}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    return f"{{\n{lines}\n}}\n"


BLOCKS = {
    "cluster-plans": cluster_plans,
    "costs": costs_table,
    "fields": fields_table,
    "generate-help": lambda: f"```text\n{help_text(('generate',))}\n```",
    "models": models_table,
    "plans": plans_table,
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
    pages = {
        ROOT / "docs" / "cli.md": reference(),
        vertex_hardware.FILE: vertex_hardware.hardware_json(),
        vertex_hardware.FILE.with_name("model_memory.json"): model_memory(),
    }
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
