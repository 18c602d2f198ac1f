"""The gallery of a batch in a real browser, from the file system."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from t2i_cli.batch import gallery, manifest
from t2i_cli.batch.manifest import Manifest
from tests.conftest import PATIENCE

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "quotes" \u2028'
SIDE = 320
FILES = {"a red house": "1.png", "a blue house": "sub/100% #2 ü.png", HOSTILE: "3.png"}


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """The page of three images, one failure and one line left out.

    The test fails if the page complains, opens a dialog of the browser's, or loads anything from
    outside the folder.
    """
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    book = Manifest(folder / manifest.MAIN_MANIFEST)
    for index, (prompt, file) in enumerate(FILES.items(), 1):
        Image.new("RGB", (SIDE, SIDE), (60 * index, 90, 120)).save(folder / file)
        asked = {"prompt": prompt, "seed": index, "steps": 4}
        book.append(
            [{"id": f"{index}", "index": index, "status": "done", "file": file, "request": asked}]
        )
    error = {"message": f"no memory for {HOSTILE}"}
    failed = {"id": "4", "index": 4, "status": "failed", "error": error}
    book.append([failed | {"request": {"prompt": "a green house", "seed": 4}}])
    book.append([{"status": "invalid", "line": 7, "field": "steps", "message": "steps is wrong"}])
    book.close()
    address = gallery.write_gallery(folder, tmp_path).as_uri()
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    context.set_default_timeout(PATIENCE)
    asked_for: list[str] = []
    complaints: list[str] = []
    context.on("request", lambda request: asked_for.append(request.url))
    context.on("console", lambda message: complaints.append(message.text))
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on("dialog", lambda dialog: complaints.append(dialog.message))
    try:
        opened = context.new_page()
        opened.goto(address)
        yield opened
    finally:
        context.close()
    assert complaints == []
    assert [url for url in asked_for if not url.startswith(folder.as_uri())] == []


def prompts(page: Page) -> list[str]:
    """The prompts that are shown, in order."""
    return page.evaluate("[...document.querySelectorAll('figcaption')].map(f => f.firstChild.data)")  # type: ignore[no-any-return]


def expect_whole(image: Locator) -> None:
    """The image comes to be loaded in its full size."""
    expect(image).to_have_js_property("naturalWidth", SIDE)


def test_every_image_is_there_and_every_prompt_is_text(page: Page) -> None:
    expect(page.locator("#count")).to_have_text("5 of 5")
    assert prompts(page) == ["line 7 of the prompts file", *FILES, "a green house"]
    for prompt in FILES:
        expect_whole(page.get_by_role("img", name=prompt, exact=True))
    expect(page.get_by_text(f"failed: no memory for {HOSTILE}")).to_be_visible()
    assert page.evaluate(
        "[document.scripts.length, document.querySelectorAll('main img').length]"
    ) == [1, 3]


def test_text_and_status_filter_together(page: Page) -> None:
    words = page.get_by_role("searchbox", name="Filter by text")
    status = page.get_by_role("combobox", name="Status")
    words.fill("HOUSE blue")
    assert prompts(page) == ["a blue house"]
    words.fill("house")
    assert prompts(page) == ["a red house", "a blue house", "a green house"]
    status.select_option("failed")
    assert prompts(page) == ["a green house"]
    expect(page.locator("#count")).to_have_text("1 of 5")
    status.select_option("withheld")
    assert prompts(page) == []
    words.fill("")
    status.select_option("invalid")
    assert prompts(page) == ["line 7 of the prompts file"]
    status.select_option("every status")
    expect(page.locator("#count")).to_have_text("5 of 5")


def test_click_shows_an_image_in_full_size_and_arrows_go_on(page: Page) -> None:
    page.get_by_role("searchbox").fill("house")
    page.get_by_role("button", name="a red house").click()
    full = page.get_by_role("dialog")
    expect(full.get_by_role("img", name="a red house")).to_be_visible()
    expect_whole(full.get_by_role("img"))
    # Larger than among the others, where all have one width.
    assert full.get_by_role("img").bounding_box()["width"] == SIDE  # type: ignore[index]
    assert page.locator("main img").first.bounding_box()["width"] < SIDE  # type: ignore[index]
    page.keyboard.press("ArrowRight")
    expect(full.get_by_role("img", name="a blue house")).to_be_visible()
    expect_whole(full.get_by_role("img"))
    expect(full).to_contain_text("a blue house — seed 2 · steps 4")
    full.click()
    expect(full).to_be_hidden()
