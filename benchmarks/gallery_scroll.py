"""How a batch's gallery of 10,000 images opens, scrolls and filters in Chromium.

To reach: the page is ready in 2 s, and 95 of 100 frames of a scroll take at most 50 ms.
Run as `python -m benchmarks.gallery_scroll`; it needs Playwright and /usr/bin/chromium.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from t2i_cli.batch import gallery, manifest
from t2i_cli.batch.local_folder import LocalFolder
from t2i_cli.batch.manifest import Manifest

CHROMIUM = "/usr/bin/chromium"
SIDE = 128
FRAMES = 300
PIXELS_A_FRAME = 200
"""12,000 pixels a second where every frame is in time."""

READY = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
"""Milliseconds from the start of the page until its scripts have run."""
SCROLL = """
async ([frames, pixels]) => {
  const times = [];
  scrollTo(0, 0);
  let last = await new Promise(requestAnimationFrame);
  for (let frame = 0; frame < frames; frame++) {
    scrollBy(0, pixels);
    const now = await new Promise(requestAnimationFrame);
    times.push(now - last);
    last = now;
  }
  return times;
}
"""
"""Scrolls; the milliseconds between one frame and the next."""
JUMP = """
async () => {
  const before = performance.now();
  scrollTo(0, document.body.scrollHeight);
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - before;
}
"""
"""Milliseconds until the end of the page is on the screen."""
FILTER = """
async () => {
  const input = document.getElementById("text"), before = performance.now();
  input.value = "number 77";
  input.dispatchEvent(new Event("input"));
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - before;
}
"""
"""Milliseconds until a filter is on the screen."""


def make_folder(folder: Path, rows: int) -> Path:
    """A batch's folder with so many images, and its page."""
    first = folder / "first.png"
    Image.effect_noise((SIDE, SIDE), 60).convert("RGB").save(first)
    lines = []
    for index in range(1, rows + 1):
        name = f"{index:05d}.png"
        os.link(first, folder / name)
        request = {"prompt": f"a red star number {index}, on green hills by day", "seed": index}
        request |= {"model": "postcard", "steps": 20, "width": SIDE, "height": SIDE}
        lines.append(
            {
                **{"id": f"{index:016x}", "index": index, "line": index, "status": "done"},
                **{"file": name, "seconds": 0.5, "request": request},
            }
        )
    book = Manifest(folder / manifest.MAIN_MANIFEST, durable=False)
    book.append(lines)
    book.close()
    return folder / gallery.write_gallery(LocalFolder(folder, folder))


def measure(browser: Browser, page: Path, rows: int) -> dict[str, float]:
    """Open the page, wait for its last card, scroll it and filter it; milliseconds."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.goto(page.as_uri())
    ready = opened.evaluate(READY)
    opened.locator("figure").nth(rows - 1).wait_for(state="attached")
    whole = opened.evaluate("performance.now()")
    frames = sorted(opened.evaluate(SCROLL, [FRAMES, PIXELS_A_FRAME]))
    jump = opened.evaluate(JUMP)
    filtered = opened.evaluate(FILTER)
    opened.close()
    return {
        "ready": ready,
        "all_cards": whole,
        "frame_median": statistics.median(frames),
        "frame_95": frames[int(0.95 * len(frames))],
        "frame_longest": frames[-1],
        "jump_to_end": jump,
        "filter": filtered,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = make_folder(Path(folder), given.rows)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        runs = [measure(browser, page, given.rows) for _ in range(given.runs)]
        browser.close()
        size = page.stat().st_size
    for figure in runs[0]:
        print(f"{figure:<16}{statistics.median(run[figure] for run in runs):>10.1f} ms")
    print(f"{'page':<16}{size / 1e6:>10.1f} MB")
    record = {
        "benchmark": "gallery_scroll",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "rows": given.rows,
        "runs": runs,
    }
    path = Path(__file__).parent / "results" / "gallery_scroll.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
