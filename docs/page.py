"""Takes the pictures of the page that docs/serve.md shows: `python docs/page.py`.

It drives Debian's Chromium on a `t2i serve` with postcard, and needs the package playwright.
"""

import re
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

IMAGES = Path(__file__).parent / "images"
CHROMIUM = "/usr/bin/chromium"
PROMPTS = {
    "a snowy landscape by day with mountains": 9,
    "a large blue square on a yellow background": 3,
    "a sailboat on the sea at sunset": 7,
    "a large red circle on a white background": 2,
    "green hills at night": 6,
}
RUNNING = ("the desert at dawn", 8)
WIDE: ViewportSize = {"width": 1040, "height": 760}
PHONE: ViewportSize = {"width": 360, "height": 760}


def ask(page: Page, prompt: str, seed: int, steps: int | None = None) -> None:
    """Have the page generate one image."""
    page.locator("summary").click()
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.get_by_label("Steps", exact=True).fill(str(steps or ""))
    page.locator("summary").click()
    page.locator("#prompt").fill(prompt)
    page.locator("#prompt").press("Enter")


def session(page: Page, url: str) -> None:
    """A gallery, and one image on its way whose preview shows something."""
    page.goto(url)
    page.locator("summary").wait_for()
    for count, (prompt, seed) in enumerate(PROMPTS.items(), 1):
        ask(page, prompt, seed)
        expect(page.locator(".tile")).to_have_count(count)
    ask(page, *RUNNING, steps=100)
    expect(page.get_by_text(re.compile(r"Step [67]\d of 100"))).to_be_visible()


def shoot(browser: Browser, url: str) -> None:
    """docs/images/page.png, light and wide; page-phone.png, dark and small, one image open."""
    page = browser.new_page(viewport=WIDE, color_scheme="light")
    session(page, url)
    page.screenshot(path=IMAGES / "page.png")
    page.close()
    page = browser.new_page(viewport=PHONE, color_scheme="dark")
    session(page, url)
    page.screenshot(path=IMAGES / "page-phone.png")
    page.close()


def main() -> None:
    """Serve, shoot, end."""
    command = [sys.executable, "-m", "t2i_cli", "serve", "-m", "postcard", "--port", "0"]
    expect.set_options(timeout=120_000)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
        assert server.stdout  # noqa: S101
        url = server.stdout.readline().strip()
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=CHROMIUM, args=["--no-sandbox"]
                )
                shoot(browser, url)
                browser.close()
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
