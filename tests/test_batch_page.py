"""The gallery of a batch in a real browser, from the file system."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from t2i_cli.batch import manifest
from t2i_cli.batch.manifest import Manifest
from tests.conftest import PATIENCE
from tests.factories import written_gallery

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
    address = written_gallery(folder, tmp_path).as_uri()
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
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('figcaption')].map(f => f.firstChild.textContent)"
    )
    return found


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


def opened(page: Page) -> Locator:
    """The dialog."""
    return page.get_by_role("dialog")


def test_click_enlarges_a_small_image_by_whole_pixels_and_arrows_go_on(page: Page) -> None:
    page.get_by_role("searchbox").fill("house")
    card = page.get_by_role("button", name="a red house")
    card.click()
    full = opened(page)
    picture = full.get_by_role("img")
    expect(full.get_by_role("img", name="a red house")).to_be_visible()
    expect_whole(picture)
    expect(picture).to_have_css("image-rendering", "pixelated")
    assert SIDE < picture.bounding_box()["width"] < 2 * SIDE  # type: ignore[index]
    # With room for it twice or more, each pixel is as large as the others.
    page.set_viewport_size({"width": 1000, "height": 1000})
    expect(picture).to_have_css("width", f"{2 * SIDE}px")
    expect(picture).to_have_css("height", f"{2 * SIDE}px")
    page.keyboard.press("ArrowRight")
    expect(full.get_by_role("img", name="a blue house")).to_be_visible()
    expect_whole(picture)
    expect(full).to_contain_text("a blue house")
    expect(full).to_contain_text("seed 2 · steps 4")
    expect(full.get_by_text("2 of 3")).to_be_visible()
    assert str(full.get_by_role("link").get_attribute("href")).endswith(
        "100%25%20%232%20%C3%BC.png"
    )
    page.keyboard.press("End")
    expect(full).to_contain_text("a green house")
    expect(full).to_contain_text("failed: no memory for")
    expect(picture).to_be_hidden()
    expect(full.get_by_role("link")).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(full.get_by_text("3 of 3")).to_be_visible()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    expect(full.get_by_text("1 of 3")).to_be_visible()
    page.keyboard.press("Escape")
    expect(full).to_be_hidden()
    expect(card).to_be_focused()


def test_an_image_larger_than_the_window_is_made_to_fit(page: Page) -> None:
    page.set_viewport_size({"width": 300, "height": 420})
    page.get_by_role("button", name="a red house").click()
    picture = opened(page).get_by_role("img")
    expect_whole(picture)
    box = picture.bounding_box()
    assert box is not None
    assert 60 < box["width"] == box["height"] < 300
    expect(picture).to_have_css("image-rendering", "auto")


def test_keyboard_alone_opens_moves_and_stays_in_the_dialog(page: Page) -> None:
    card = page.get_by_role("button", name="a red house")
    card.focus()
    page.keyboard.press("Enter")
    full = opened(page)
    expect(full.get_by_role("button", name="Next")).to_be_visible()
    inside = "document.activeElement === document.body || full.contains(document.activeElement)"
    names = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate(inside)
        names.add(page.evaluate("document.activeElement.id"))
    assert {"previous", "next", "file", "copy", "close"} <= names
    full.get_by_role("button", name="Next").focus()
    for _ in range(3):
        page.keyboard.press("Enter")
    # The last has none behind it: the focus goes on to a button that can be pressed.
    expect(full.get_by_text("5 of 5")).to_be_visible()
    expect(full.get_by_role("button", name="Next")).to_be_disabled()
    expect(full.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Enter")
    expect(full).to_be_hidden()
    # The focus is on what was shown last.
    expect(page.locator(":focus")).to_contain_text("no memory")


def test_command_is_shown_and_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="a blue house").click()
    command = "t2i generate 'a blue house' --seed 2 --steps 4"
    expect(opened(page).locator("code")).to_have_text(command)
    opened(page).get_by_role("button", name="Copy the command").click()
    expect(opened(page).get_by_role("status")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == command
    page.keyboard.press("ArrowRight")
    words = "[...document.querySelectorAll('#command bdi')].map(word => word.textContent)"
    assert shlex.split(" ".join(page.evaluate(words)))[2] == HOSTILE
    page.keyboard.press("Home")
    # A line that was left out has none.
    expect(opened(page).get_by_role("button", name="Copy the command")).to_be_hidden()


def test_a_filter_without_result_says_so_and_can_be_undone(page: Page) -> None:
    page.get_by_role("searchbox").fill("zeppelin")
    page.get_by_role("combobox", name="Status").select_option("withheld")
    expect(page.get_by_text("No image matches.")).to_be_visible()
    page.get_by_role("button", name="Show all").click()
    expect(page.locator("#count")).to_have_text("5 of 5")
    expect(page.get_by_text("No image matches.")).to_be_hidden()
    assert len(prompts(page)) == 5


def write_page(folder: Path, lines: list[dict[str, object]]) -> str:
    """The address of a page with these lines in its manifest."""
    folder.mkdir()
    book = Manifest(folder / manifest.MAIN_MANIFEST, durable=False)
    book.append(lines)
    book.close()
    return written_gallery(folder, folder).as_uri()


def failed_line(number: int, **marks: object) -> dict[str, object]:
    """A line of an image that is not there."""
    request = {"prompt": f"star {number}", "seed": number}
    return {"id": f"{number}", "index": number, "status": "failed", "request": request, **marks}


def test_an_empty_folder_says_that_it_is(page: Page, tmp_path: Path) -> None:
    page.goto(write_page(tmp_path / "out" / "empty", []))
    expect(page.get_by_text("There is no image here yet")).to_be_visible()
    expect(page.get_by_role("button", name="Show all")).to_be_hidden()


def test_rows_of_earlier_requests_stand_apart(page: Page, tmp_path: Path) -> None:
    lines = [failed_line(1), failed_line(2, earlier=True), failed_line(3)]
    page.goto(write_page(tmp_path / "out" / "earlier", lines))
    earlier = page.get_by_role("region", name="Of earlier requests")
    expect(earlier.locator("figcaption")).to_have_count(1)
    assert prompts(page) == ["star 1", "star 3", "star 2"]
    # The arrows go through both, in the order on the page.
    page.get_by_role("button").last.click()
    expect(opened(page).get_by_text("3 of 3")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("searchbox").fill("star 3")
    expect(earlier).to_be_hidden()


LAID_OUT = """
[...document.querySelectorAll("figure")].filter(
  (card) => card.checkVisibility({ contentVisibilityAuto: true })).length
"""


def test_thousands_are_laid_out_only_where_they_are_seen(page: Page, tmp_path: Path) -> None:
    rows = 3000
    page.goto(write_page(tmp_path / "out" / "many", [failed_line(n + 1) for n in range(rows)]))
    # The page has its height at once, and the last ones are there when it is scrolled to them.
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.get_by_text(f"star {rows}", exact=True)).to_be_in_viewport()
    assert 0 < page.evaluate(LAID_OUT) < 300
    # In the end every card is there, for the browser's own search and for a screen reader.
    expect(page.locator("figure")).to_have_count(rows)
    page.get_by_role("searchbox").fill("299")
    expect(page.locator("#count")).to_have_text("13 of 3000")
    expect(page.locator("figure")).to_have_count(13)
