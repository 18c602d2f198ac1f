"""The page that `t2i serve` shows, in a real browser and from a real server."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event as Flag

import httpx2
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.errors import ContentFilteredError, InputError, T2IError
from t2i_cli.events import MemoryMeasure, Notice, OnEvent, Preview, Step
from t2i_cli.models.file_digests import sha256_of
from t2i_cli.models.scheduler_support import serving_scheduler_names
from t2i_cli.models.schedulers import usable_scheduler_names
from t2i_cli.output import metadata
from t2i_cli.postcard.vocabulary import EXAMPLES
from t2i_cli.request import ResolvedRequest
from t2i_cli.server.options import ServerLimits, ServerOptions
from tests.conftest import PATIENCE
from tests.fakes.lora_files import SNOW
from tests.fakes.serving import Running, serving
from tests.fakes.stub_backend import StubBackend, painted

KEY = "a-key-of-the-tests"
LOCKED = ServerOptions(api_key=KEY)
STEPS = 4
HELD = 2
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> & \"quotes\" 'too'"


@dataclass
class Easel(StubBackend):
    """Paints in four steps, with previews; before the third it waits for `go`.

    `stopped` is set once a cancelled run has ended.
    """

    go: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(
        self,
        requests: Sequence[ResolvedRequest],
        on_event: OnEvent,
        cancel: Flag,
        previews: Sequence[int] = (),
    ) -> Iterator[GeneratedImage | Failure]:
        """One outcome for each request, in order."""
        for index, request in enumerate(requests):
            for step in range(1, STEPS + 1):
                while step > HELD and not self.go.wait(0.02):
                    if cancel.is_set():
                        self.stopped.set()
                        return
                on_event(Step(indices=(index,), step=step, steps=STEPS))
                if previews and previews[index]:
                    look = Image.new("RGB", (8, 8), (step * 60, 80, 120))
                    on_event(Preview(index=index, step=step, steps=STEPS, image=look))
            self.made.append(request)
            if error := self.fails(request):
                yield Failure(index=index, request=request, error=error)
            else:
                yield painted(index, request, self.side)


@pytest.fixture
def easel() -> Easel:
    """What paints, and does not wait unless a test has it wait."""
    stub = Easel(side=48)
    stub.go.set()
    return stub


@pytest.fixture
def server(easel: Easel) -> Iterator[Running]:
    """A server of postcard's kind, without a key."""
    with serving(easel) as running:
        yield running


Tab = Callable[..., AbstractContextManager[Page]]


@pytest.fixture
def tab(browser: Browser) -> Tab:
    """Open the page of a server, in a profile of its own.

    The test fails if the page complains (a breach of its security policy does), loads anything
    from elsewhere, opens a dialog of the browser's, or gets other than `refusals` error answers.
    """

    @contextmanager
    def opened(url: str, *, refusals: int = 0, **options: object) -> Iterator[Page]:
        context = browser.new_context(**options)  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE)
        asked: list[str] = []
        complaints: list[str] = []
        context.on("request", lambda request: asked.append(request.url))
        context.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        context.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        try:
            page = context.new_page()
            page.goto(url)
            yield page
        finally:
            context.close()
        failed = [text for text in complaints if "Failed to load resource" in text]
        assert [text for text in complaints if text not in failed] == []
        assert len(failed) == refusals
        assert [other for other in asked if not other.startswith((url, "data:", "blob:"))] == []

    return opened


def prompt(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Prompt", exact=True)


def submit(page: Page, text: str) -> None:
    """Type a prompt and press Enter, once the page knows its model and has nothing to do."""
    page.locator("summary").wait_for()
    expect(idle(page)).to_be_visible()
    prompt(page).fill(text)
    prompt(page).press("Enter")


def fill(page: Page, **values: str) -> None:
    """Unfold the settings and fill in fields by their labels."""
    page.locator("summary").click()
    for label, value in values.items():
        page.get_by_label(label.replace("_", " "), exact=True).fill(value)


def idle(page: Page) -> Locator:
    """The button, while no job runs."""
    return page.get_by_role("button", name="Generate", disabled=False)


def tiles(page: Page) -> Locator:
    return page.get_by_role("listitem").get_by_role("button")


def viewer(page: Page) -> Locator:
    return page.get_by_role("dialog")


def said(page: Page) -> Locator:
    """The live region, which a screen reader reads out."""
    return page.locator("#live[role=status]")


def overflow(page: Page) -> int:
    """Pixels by which the page, or an open dialog, is wider than its window."""
    found: int = page.evaluate(
        """() => [...document.querySelectorAll("html, dialog[open]")]
            .reduce((most, box) => Math.max(most, box.scrollWidth - box.clientWidth), 0)"""
    )
    return found


def drawn(image: Locator) -> bool:
    """Whether the browser could read the picture."""
    found: bool = image.evaluate("(image) => image.decode().then(() => image.naturalWidth > 0)")
    return found


def colour(element: Locator, name: str) -> list[float]:
    """A colour of an element's style: red, green and blue."""
    style = element.evaluate("(element, name) => getComputedStyle(element)[name]", name)
    return [int(part) for part in re.findall(r"\d+", style)[:3]]


def contrast(one: list[float], other: list[float]) -> float:
    """How far two colours are apart, as WCAG 2.2 has it."""

    def luminance(colour: list[float]) -> float:
        shares = [value / 255 for value in colour]
        red, green, blue = (
            share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
            for share in shares
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_generates_with_progress_and_previews(server: Running, easel: Easel, tab: Tab) -> None:
    easel.go.clear()
    with tab(server.url) as page:
        expect(page.locator("#model")).to_have_text("postcard")
        expect(prompt(page)).to_be_focused()
        submit(page, "a red circle")

        expect(page.get_by_text("Step 2 of 4")).to_be_visible()
        expect(page.get_by_role("progressbar", name="Progress")).to_have_attribute("value", "0.5")
        expect(page).to_have_title("50 % · t2i")
        preview = page.locator(".pending.begun img")
        expect(preview).to_have_attribute("src", re.compile("^data:image/jpeg"))
        assert drawn(preview)
        expect(said(page)).to_have_text("50 %")

        easel.go.set()
        expect(said(page)).to_have_text("The image is ready.")
        expect(tiles(page)).to_have_count(1)
        seed = easel.made[0].seed
        made = page.get_by_role("img", name=f"a red circle, seed {seed}")
        assert drawn(made)
        expect(page.locator("#run")).to_be_hidden()
        expect(page.locator(".pending")).to_have_count(0)
        expect(page).to_have_title("t2i")
        expect(prompt(page)).to_be_focused()
    assert easel.made[0].user_set == {"prompt"}


def test_every_setting_reaches_the_model(server: Running, easel: Easel, tab: Tab) -> None:
    with tab(server.url) as page:
        page.locator("summary").click()
        for name, default in {"Steps": "20", "Guidance": "2", "Width": "128"}.items():
            field = page.get_by_label(name, exact=True)
            expect(field).to_have_attribute("placeholder", default)
        options = page.get_by_label("Scheduler").locator("option").all_inner_texts()
        assert options == ["Model’s own", *usable_scheduler_names(False)]
        page.locator("summary").click()

        fill(page, Negative_prompt="blue", Steps="7", Guidance="4.5", Width="64", Height="96")
        page.get_by_label("Scheduler").select_option("ddim")
        page.get_by_label("Seed", exact=True).fill("41")
        page.get_by_label("Images", exact=True).fill("2")
        page.get_by_label("Format").select_option("webp")
        page.locator("summary").click()
        expect(page.locator("summary")).to_contain_text("steps 7 · guidance 4.5 · width 64")
        submit(page, "a red circle")
        expect(tiles(page)).to_have_count(2)
        expect(said(page)).to_have_text("All 2 images are ready.")

        tiles(page).first.click()
        with page.expect_download() as download:
            viewer(page).get_by_role("link", name="Download").click()
        assert re.fullmatch(r"a-red-circle-4[12]\.webp", download.value.suggested_filename)
        expect(viewer(page)).to_contain_text("48 × 48")
    first, second = sorted(easel.made, key=lambda request: request.seed)
    assert (first.seed, second.seed) == (41, 42)
    assert first.identity_values() == second.identity_values()
    assert first.to_json() == {
        "prompt": "a red circle",
        "negative_prompt": "blue",
        "model": "postcard",
        "revision": None,
        "seed": 41,
        "steps": 7,
        "guidance_scale": 4.5,
        "width": 64,
        "height": 96,
        "scheduler": "ddim",
    }


def test_only_what_the_model_can_honour_is_offered(easel: Easel, tab: Tab) -> None:
    with serving(easel, model="flux-schnell") as server, tab(server.url) as page:
        page.locator("summary").click()
        expect(page.get_by_label("Steps", exact=True)).to_be_visible()
        expect(page.get_by_label("Negative prompt")).to_be_hidden()
        expect(page.get_by_label("Guidance", exact=True)).to_be_hidden()
        options = page.get_by_label("Scheduler").locator("option").all_inner_texts()
        assert options == ["Model’s own", *serving_scheduler_names("FluxPipeline", True, {})]
        submit(page, "a fox")
        expect(tiles(page)).to_have_count(1)
    assert easel.made[0].guidance_scale is None


def test_what_no_model_takes_is_caught_in_the_form(server: Running, easel: Easel, tab: Tab) -> None:
    with tab(server.url) as page:
        submit(page, "")
        expect(page.locator("#prompt:invalid")).to_be_focused()
        fill(page, Width="100")
        page.locator("summary").click()
        submit(page, "a red circle")
        # It unfolds, so that the browser can say what is wrong where it is.
        expect(page.get_by_label("Width", exact=True)).to_be_focused()
        page.get_by_role("button", name="Back to the defaults").click()
        submit(page, "a red circle")
        expect(tiles(page)).to_have_count(1)
    assert [request.width for request in easel.made] == [128]


def test_cancel_frees_the_server(server: Running, easel: Easel, tab: Tab) -> None:
    easel.go.clear()
    with tab(server.url) as page:
        submit(page, "a red circle")
        expect(page.locator(".pending.begun")).to_be_visible()
        expect(page.get_by_role("button", name="Generate")).to_be_disabled()
        prompt(page).press("Enter")
        expect(said(page)).to_have_text("Still generating; Cancel ends it.")
        page.get_by_role("button", name="Cancel").click()

        expect(said(page)).to_have_text("Cancelled.")
        expect(page.locator(".pending")).to_have_count(0)
        expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
        expect(prompt(page)).to_be_focused()

        submit(page, "a blue square")
        expect(page.get_by_text("Step 2 of 4")).to_be_visible()
        easel.go.set()
        expect(tiles(page)).to_have_count(1)
    assert [request.prompt for request in easel.made] == ["a blue square"]


PLACES = """() => Object.fromEntries(
    [...document.querySelectorAll("header, #form, #form *, h2, #clear, #gallery, .tile")]
        .filter((element) => element.getClientRects().length)
        .filter((element) => !element.closest("#run, option"))
        .map((element, n) => {
            const { x, y, width, height } = element.getBoundingClientRect();
            return [`${n} ${element.tagName} ${element.id}`, [x, y, width, height]];
        }))"""


@pytest.mark.parametrize("unfolded", [False, True])
@pytest.mark.parametrize("size", [(1040, 760), (360, 740)])
def test_nothing_moves_after_cancel(
    size: tuple[int, int], unfolded: bool, server: Running, easel: Easel, tab: Tab
) -> None:
    viewport = {"width": size[0], "height": size[1]}
    with tab(server.url, viewport=viewport, reduced_motion="reduce") as page:
        submit(page, "a red circle")
        expect(tiles(page)).to_have_count(1)
        fill(page, Images="3")
        if not unfolded:
            page.locator("summary").click()
        expect(idle(page)).to_be_visible()
        easel.go.clear()
        idle(page).scroll_into_view_if_needed()
        form = page.locator("#form").bounding_box()
        idle(page).click()
        expect(page.get_by_text("Step 2 of 4")).to_be_visible()
        assert page.locator("#form").bounding_box() == form

        cancel = page.get_by_role("button", name="Cancel")
        cancel.hover()
        box = cancel.bounding_box()
        assert box
        before = page.evaluate(PLACES)
        assert any("BUTTON clear" in name for name in before)
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(said(page)).to_have_text("Cancelled.")
        expect(cancel).to_be_hidden()
        expect(prompt(page)).to_be_focused()
        assert page.evaluate(PLACES) == before
        expect(page.locator(".cancelled")).to_have_count(3)
        # A further click of an impatient hand does nothing.
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(tiles(page)).to_have_count(1)
        expect(idle(page)).to_be_visible()

        # The page says so at once; the run hears of it a moment later.
        assert easel.stopped.wait(30)
        easel.go.set()
        idle(page).click()
        expect(tiles(page)).to_have_count(4)
        expect(page.locator(".cancelled")).to_have_count(0)
    assert len(easel.made) == 4


def test_nothing_moves_when_a_job_ends_before_cancel_is_pressed(
    server: Running, easel: Easel, tab: Tab
) -> None:
    easel.go.clear()
    with tab(server.url) as page:
        submit(page, "a red circle")
        expect(page.get_by_text("Step 2 of 4")).to_be_visible()
        box = page.get_by_role("button", name="Cancel").bounding_box()
        assert box
        form = page.locator("#form").bounding_box()
        easel.go.set()
        expect(tiles(page)).to_have_count(1)
        expect(idle(page)).to_be_visible()
        assert page.locator("#form").bounding_box() == form
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(viewer(page)).to_be_hidden()
        expect(tiles(page)).to_have_count(1)
    assert len(easel.made) == 1


@pytest.mark.parametrize("model", ["postcard", "flux-schnell"])
def test_example_prompts_fill_the_form(model: str, easel: Easel, tab: Tab) -> None:
    with serving(easel, model=model) as server, tab(server.url) as page:
        examples = page.get_by_role("group", name="Example prompts").get_by_role("button")
        examples.first.wait_for()
        texts = examples.all_inner_texts()
        assert (texts == list(EXAMPLES)) is (model == "postcard")
        assert len(set(texts)) >= 4

        prompt(page).fill("my own words")
        examples.nth(1).click()
        expect(prompt(page)).to_have_value(texts[1])
        expect(prompt(page)).to_be_focused()
        expect(said(page)).to_have_text("The example is in the form.")
        expect(page.locator(".pending")).to_have_count(0)
        page.keyboard.press("Control+Z")
        expect(prompt(page)).to_have_value("my own words")

        for _ in texts:
            page.keyboard.press("Shift+Tab")
        expect(examples.first).to_be_focused()
        page.keyboard.press("Enter")
        expect(prompt(page)).to_have_value(texts[0])
        expect(prompt(page)).to_be_focused()
        page.keyboard.press("Enter")
        expect(tiles(page)).to_have_count(1)
        examples.nth(2).click()
        page.reload()
        expect(prompt(page)).to_have_value(texts[2])
    assert [request.prompt for request in easel.made] == [texts[0]]


def test_enter_before_the_model_is_known_is_one_job(
    server: Running, easel: Easel, tab: Tab
) -> None:
    easel.go.clear()
    with tab(server.url) as page:
        page.locator("summary").wait_for()
        held: list[Route] = []
        page.route("**/t2i/v1/model", lambda route: held.append(route))
        page.reload(wait_until="commit")
        expect(page.locator("#model")).to_have_text("Loading the model…")
        expect(said(page)).to_have_text("Loading the model.")
        prompt(page).fill("a red circle")
        prompt(page).press("Enter")
        prompt(page).press("Enter")
        begins = page.get_by_text("It begins as soon as the model is loaded.")
        expect(begins).to_be_visible()
        [asked] = held
        asked.continue_()

        expect(page.get_by_text("Step 2 of 4")).to_be_visible()
        expect(begins).to_be_hidden()
        expect(page.locator(".pending")).to_have_count(1)
        easel.go.set()
        expect(tiles(page)).to_have_count(1)
        expect(idle(page)).to_be_visible()
        expect(page.locator("#model")).to_have_text("postcard")
        options = page.get_by_label("Scheduler").locator("option").all_text_contents()
        assert options == ["Model’s own", *usable_scheduler_names(False)]
        options = page.get_by_label("Format").locator("option").all_text_contents()
        assert options == ["PNG", "JPEG", "WEBP"]
    assert [request.prompt for request in easel.made] == ["a red circle"]


def test_says_who_is_ahead(server: Running, easel: Easel, tab: Tab) -> None:
    easel.go.clear()
    with tab(server.url) as first, tab(server.url) as second, tab(server.url) as third:
        submit(first, "one")
        expect(first.get_by_text("Step 2 of 4")).to_be_visible()
        fill(second, Steps="5")
        submit(second, "two")
        expect(second.get_by_text("Waiting")).to_be_visible()
        fill(third, Steps="6")
        submit(third, "three")
        expect(third.get_by_text("Waiting")).to_be_visible()
        easel.go.set()
        for page in (first, second, third):
            expect(tiles(page)).to_have_count(1)


def test_a_reload_keeps_the_gallery_and_the_form(server: Running, easel: Easel, tab: Tab) -> None:
    with tab(server.url) as page:
        fill(page, Seed="7")
        submit(page, "a red circle")
        expect(tiles(page)).to_have_count(1)
        submit(page, "a blue square")
        expect(tiles(page)).to_have_count(2)
        prompt(page).fill("half a thou")

        page.reload()
        expect(tiles(page)).to_have_count(2)
        assert drawn(page.get_by_role("img", name="a red circle, seed 7"))
        assert "blue" in tiles(page).first.inner_text()
        expect(prompt(page)).to_have_value("half a thou")
        expect(page.locator("summary")).to_contain_text("seed 7")

        other = page.context.new_page()
        other.goto(server.url)
        expect(other.get_by_text("Your images appear here")).to_be_visible()
        expect(tiles(other)).to_have_count(0)

        page.get_by_role("button", name="Remove all").click()
        expect(page.get_by_text("Your images appear here")).to_be_visible()
        page.reload()
        expect(page.locator("#model")).to_have_text("postcard")
        expect(tiles(page)).to_have_count(0)


def test_removing_all_can_be_undone(server: Running, easel: Easel, tab: Tab) -> None:
    with tab(server.url) as page:
        fill(page, Images="2", Seed="5")
        submit(page, "a red circle")
        expect(said(page)).to_have_text("All 2 images are ready.")
        clear, undo = page.locator("#clear"), page.get_by_role("button", name="Undo")
        before = tiles(page).all_inner_texts()
        clear.click()
        expect(tiles(page)).to_have_count(0)
        expect(said(page)).to_have_text("2 images are removed. Undo is possible for 10 seconds.")
        expect(undo).to_be_focused()
        page.keyboard.press("Enter")
        expect(tiles(page)).to_have_count(2)
        expect(said(page)).to_have_text("2 images are back.")
        expect(undo).to_be_hidden()
        expect(clear).to_be_focused()
        assert tiles(page).all_inner_texts() == before
        assert drawn(page.get_by_role("img", name="a red circle, seed 5"))
        page.reload()
        expect(tiles(page)).to_have_count(2)
        assert sorted(tiles(page).all_inner_texts()) == sorted(before)

        page.locator("#model").get_by_text("postcard").wait_for()
        page.clock.install()
        clear.dblclick()
        expect(undo).to_be_visible()
        undo.focus()
        page.clock.fast_forward(8_000)
        expect(undo).to_be_visible()
        page.clock.fast_forward(3_000)
        expect(undo).to_be_hidden()
        expect(prompt(page)).to_be_focused()
        page.reload()
        expect(page.locator("#model")).to_have_text("postcard")
        expect(tiles(page)).to_have_count(0)


def test_undo_keeps_what_came_meanwhile(server: Running, easel: Easel, tab: Tab) -> None:
    with tab(server.url) as page:
        for text in ("first", "second"):
            submit(page, text)
            expect(page.get_by_role("img", name=text)).to_be_visible()
        easel.go.clear()
        submit(page, "third")
        expect(page.get_by_text("Step 2 of 4")).to_be_visible()
        page.get_by_role("button", name="Remove all").click()
        easel.go.set()
        expect(tiles(page)).to_have_count(1)
        page.get_by_role("button", name="Undo").click()
        expect(tiles(page)).to_have_count(3)
        for _ in range(2):
            for tile, text in zip(tiles(page).all(), ("third", "second", "first"), strict=True):
                expect(tile).to_contain_text(text)
            page.reload()
            expect(tiles(page)).to_have_count(3)


def test_removing_one_can_be_undone(server: Running, easel: Easel, tab: Tab) -> None:
    with tab(server.url) as page:
        fill(page, Images="3")
        submit(page, "a red circle")
        expect(said(page)).to_have_text("All 3 images are ready.")
        before = tiles(page).all_inner_texts()
        page.clock.install()
        tiles(page).nth(1).click()
        box = viewer(page)
        box.get_by_role("button", name="Remove").click()
        expect(box.get_by_role("status")).to_have_text("Removed. Close this view to undo it.")
        box.get_by_role("button", name="Remove").click()
        page.clock.fast_forward(60_000)
        page.keyboard.press("Escape")
        expect(tiles(page)).to_have_count(1)
        expect(said(page)).to_contain_text("2 images are removed. Undo is possible")
        page.get_by_role("button", name="Undo").click()
        expect(tiles(page)).to_have_count(3)
        assert tiles(page).all_inner_texts() == before


def test_a_reload_amid_a_job_cancels_it(server: Running, easel: Easel, tab: Tab) -> None:
    easel.go.clear()
    with tab(server.url) as page:
        submit(page, "a red circle")
        expect(page.get_by_text("Step 2 of 4")).to_be_visible()
        page.reload()
        submit(page, "a blue square")
        expect(page.get_by_text("Step 2 of 4")).to_be_visible()
        easel.go.set()
        expect(tiles(page)).to_have_count(1)
    assert [request.prompt for request in easel.made] == ["a blue square"]


def test_what_a_closed_tab_left_goes_after_a_day(server: Running, tab: Tab) -> None:
    with tab(server.url) as page:
        submit(page, "a red circle")
        expect(tiles(page)).to_have_count(1)
        for days, left in ((0.9, 1), (1.1, 0)):
            later = page.context.new_page()
            later.clock.set_fixed_time(datetime.now() + timedelta(days=days))
            later.goto(server.url)
            expect(later.locator("#model")).to_have_text("postcard")
            page.reload()
            expect(page.locator("#model")).to_have_text("postcard")
            expect(tiles(page)).to_have_count(left)


def test_without_a_database_images_last_until_a_reload(server: Running, tab: Tab) -> None:
    with tab(server.url) as page:
        page.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined })")
        page.reload()
        expect(page.get_by_text("This browser keeps no images")).to_be_visible()
        submit(page, "a red circle")
        expect(tiles(page)).to_have_count(1)
        tiles(page).click()
        viewer(page).get_by_role("button", name="Remove").click()
        expect(tiles(page)).to_have_count(0)
        expect(prompt(page)).to_be_focused()


def test_the_gallery_is_bounded(easel: Easel, tab: Tab) -> None:
    limits = ServerLimits(images=70, max_batch=70)
    with serving(easel, limits=limits) as server, tab(server.url) as page:
        fill(page, Images="63", Seed="1")
        submit(page, "a red circle")
        expect(said(page)).to_have_text("All 63 images are ready.")
        expect(tiles(page)).to_have_count(60)
        expect(page.get_by_role("img", name="seed 3", exact=False).first).to_be_attached()
        expect(page.get_by_role("img", name="a red circle, seed 3", exact=True)).to_have_count(0)
        page.reload()
        expect(tiles(page)).to_have_count(60)


def test_an_error_names_the_field_and_what_to_do(server: Running, easel: Easel, tab: Tab) -> None:
    with tab(server.url, refusals=1) as page:
        fill(page, Negative_prompt="blue", Guidance="1")
        page.locator("summary").click()
        submit(page, "a red circle")
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("The negative prompt cannot act at guidance 1")
        field = page.get_by_label("Negative prompt")
        expect(field).to_be_focused()
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(page.locator(".pending")).to_have_count(0)

        field.fill("")
        submit(page, "a red circle")
        expect(tiles(page)).to_have_count(1)
        expect(alert).to_be_empty()
        expect(field).not_to_have_attribute("aria-invalid", "true")


def test_one_failure_of_several_leaves_the_others(server: Running, easel: Easel, tab: Tab) -> None:
    hint = "Another seed may pass; --no-safety-checker leaves it out."
    refused = ContentFilteredError("The safety checker withheld it.", hint=hint)
    easel.fails = lambda request: refused if request.seed == 6 else None
    with tab(server.url) as page:
        fill(page, Seed="5", Images="3")
        submit(page, "a red circle")
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("Image 2: The safety checker withheld it.")
        expect(alert).to_contain_text("Another seed or another wording may pass.")
        expect(tiles(page)).to_have_count(2)
        expect(page.locator(".pending")).to_have_count(0)


def test_what_is_said_is_for_someone_in_a_browser(
    server: Running, easel: Easel, tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hints name commands and options: whatever fails, the page has words of its own."""
    hint = "`t2i models show postcard`, or leave --scheduler away."
    kinds = [kind for kind in T2IError.__subclasses__() if hasattr(kind, "code")]
    errors = [kind(f"It is {kind.code}.", hint=hint) for kind in kinds]
    named = {
        "scheduler": "Change “Scheduler”, or leave it empty.",
        "requests.0.prompt": "Change the prompt.",
        "batch_size": "Tell those who run this server",
    }
    errors += [InputError(f"It is {name}.", hint=hint, field=name) for name in named]
    easel.fails = lambda request: errors[request.seed] if request.seed < len(errors) else None
    run = easel.run

    def noting(*args: object, **options: object) -> Iterator[GeneratedImage | Failure]:
        args[1](Notice(message="It is a note.", hint=hint))  # type: ignore[operator]
        args[1](MemoryMeasure(name="VAE tiling", reason=f"asked for: {hint}"))  # type: ignore[operator]
        return run(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(easel, "run", noting)
    with tab(server.url) as page:
        fill(page, Seed="0")
        for seed, error in enumerate(errors):
            page.get_by_label("Seed", exact=True).fill(str(seed))
            submit(page, "a red circle")
            alert = page.get_by_role("alert")
            field = getattr(error, "field", None)
            message = "It is “Prompt”." if field == "requests.0.prompt" else error.message
            expect(alert.locator("p").first).to_have_text(message)
            expect(alert.locator(".hint")).to_contain_text(named.get(field or "", " "))
            expect(page.locator("#notes")).to_contain_text("It is a note.")
            expect(page.locator("#notes")).to_contain_text("VAE tiling")
            text = page.locator("body").inner_text()
            assert not re.search(r"--\w|`|\bt2i [a-z]", text), text


def test_a_server_that_goes_away_is_told(t2i_env: dict[str, str], tab: Tab) -> None:
    command = [sys.executable, "-m", "tests.fakes.serving"]
    environment = t2i_env | {"PAUSE": "600"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        with tab(process.stdout.readline().strip(), refusals=2) as page:
            submit(page, "a red circle")
            expect(page.get_by_text("Starting")).to_be_visible()
            process.kill()
            alert = page.get_by_role("alert")
            expect(alert).to_contain_text("It may have been stopped, or the network is down.")
            expect(page.locator(".pending")).to_have_count(0)
            submit(page, "a blue square")
            expect(alert).to_contain_text("The server does not answer.")


def test_asks_for_the_key(easel: Easel, tab: Tab) -> None:
    with serving(easel, options=LOCKED) as server, tab(server.url, refusals=3) as page:
        expect(viewer(page)).to_contain_text("This server asks for a key")
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        expect(field).to_have_attribute("type", "password")
        page.keyboard.press("Escape")
        expect(page.get_by_role("alert")).to_have_text(
            "This server needs its key.Generate asks for it again."
        )
        expect(page.locator("#model")).to_be_empty()

        prompt(page).fill("a red circle")
        page.get_by_role("button", name="Generate").click()
        field.fill("wrong")
        page.get_by_role("button", name="Use this key").click()
        expect(viewer(page)).to_contain_text("That key was refused")
        expect(field).to_have_value("")
        field.fill(KEY)
        field.press("Enter")
        expect(tiles(page)).to_have_count(1)
        expect(page.get_by_role("alert")).to_be_empty()

        page.reload()
        submit(page, "a blue square")
        expect(tiles(page)).to_have_count(2)
        assert KEY not in page.url
        assert page.evaluate("Object.values(localStorage)") == []


def test_copies_where_there_is_no_clipboard(server: Running, easel: Easel, tab: Tab) -> None:
    with tab(server.url) as page:
        page.add_init_script(
            """Object.defineProperty(navigator, "clipboard", { value: undefined });
            addEventListener("copy", () => { window.copied = getSelection().toString(); });"""
        )
        page.reload()
        submit(page, "a red circle")
        tiles(page).click()
        button = viewer(page).get_by_role("button", name="Copy seed")
        button.click()
        expect(viewer(page).get_by_role("status")).to_have_text("Seed copied.")
        assert page.evaluate("window.copied") == str(easel.made[0].seed)
        expect(button).to_be_focused()


def test_a_hostile_prompt_is_text(server: Running, easel: Easel, tab: Tab) -> None:
    with tab(server.url) as page:
        submit(page, HOSTILE)
        expect(tiles(page)).to_have_count(1)
        expect(tiles(page).first).to_contain_text(HOSTILE)
        tiles(page).first.click()
        expect(viewer(page)).to_contain_text(HOSTILE)
        expect(viewer(page).get_by_role("img", name=HOSTILE)).to_be_visible()
        assert page.locator("[onerror], body script").count() == 0
        download = viewer(page).get_by_role("link", name="Download")
        expect(download).to_have_attribute("download", re.compile(r"^img-src-x-[-a-z0-9]+\.png$"))
        page.reload()
        expect(tiles(page).first).to_contain_text(HOSTILE)


def test_by_keyboard_alone(server: Running, easel: Easel, tab: Tab) -> None:
    with tab(server.url) as page:
        page.locator("summary").wait_for()
        expect(prompt(page)).to_be_focused()
        press = page.keyboard.press
        page.keyboard.type("a red")
        press("Shift+Enter")
        page.keyboard.type("circle")
        press("Control+Enter")
        expect(tiles(page)).to_have_count(1)
        expect(idle(page)).to_be_visible()
        press("Tab")
        expect(page.locator("summary")).to_be_focused()
        press("Enter")
        fields = ("Negative prompt", "Steps", "Guidance", "Guidance rescale", "Width", "Height")
        for label in fields:
            press("Tab")
            expect(page.get_by_label(label, exact=True)).to_be_focused()
        press("Shift+Tab")
        page.keyboard.type("64")
        press("Enter")
        expect(tiles(page)).to_have_count(2)
        idle(page).focus()
        press("Space")
        expect(tiles(page)).to_have_count(3)
        expect(idle(page)).to_be_focused()

        press("Tab")
        expect(page.get_by_role("button", name="Remove all")).to_be_focused()
        press("Tab")
        expect(tiles(page).nth(0)).to_be_focused()
        press("Enter")
        expect(viewer(page).get_by_role("button", name="Close")).to_be_focused()
        press("ArrowRight")
        expect(viewer(page)).to_contain_text(str(easel.made[1].seed))
        viewer(page).get_by_role("button", name="Next image").focus()
        press("Enter")
        expect(viewer(page)).to_contain_text(str(easel.made[0].seed))
        expect(viewer(page).get_by_role("button", name="Next image")).to_be_hidden()
        expect(viewer(page).get_by_role("button", name="Close")).to_be_focused()
        press("Escape")
        expect(viewer(page)).to_be_hidden()
        expect(tiles(page).nth(2)).to_be_focused()
    assert [request.width for request in easel.made] == [128, 64, 64]
    assert easel.made[0].prompt == "a red\ncircle"


def test_what_can_be_done_with_an_image(
    server: Running, easel: Easel, tab: Tab, tmp_path: Path
) -> None:
    with tab(server.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        fill(page, Steps="7", Images="2")
        submit(page, "a red circle")
        expect(tiles(page)).to_have_count(2)
        tiles(page).last.click()
        box = viewer(page)
        seed = int(box.locator("dd").first.inner_text())
        [made] = [request for request in easel.made if request.seed == seed]

        def copied(button: str) -> str:
            box.get_by_role("button", name=button).click()
            expect(box.get_by_role("status")).to_contain_text("copied")
            found: str = page.evaluate("navigator.clipboard.readText()")
            return found

        assert copied("Copy seed") == str(seed)
        wanted = {name: value for name, value in made.to_json().items() if value is not None}
        assert json.loads(copied("Copy settings")) == wanted

        with page.expect_download() as download:
            box.get_by_role("link", name="Download").click()
        assert download.value.suggested_filename == f"a-red-circle-{seed}.png"
        file = tmp_path / "image.png"
        download.value.save_as(file)
        assert metadata.read_metadata(file).request == made.to_json()

        box.get_by_role("button", name="Actual size").click()
        assert box.get_by_role("img").evaluate("(image) => image.width") == easel.side

        prompt(page).evaluate("(field) => { field.value = 'something else'; }")
        box.get_by_role("button", name="Again with this seed").click()
        expect(prompt(page)).to_have_value("a red circle")
        expect(prompt(page)).to_be_focused()
        expect(page.get_by_label("Seed", exact=True)).to_have_value(str(seed))
        expect(page.get_by_label("Steps", exact=True)).to_have_value("7")
        for default in ("Width", "Guidance", "Images"):
            expect(page.get_by_label(default, exact=True)).to_have_value("")
        expect(idle(page)).to_be_visible()
        prompt(page).press("Enter")
        expect(tiles(page)).to_have_count(3)
        assert easel.made[2] == made

        tiles(page).first.click()
        box.get_by_role("button", name="Remove").click()
        expect(tiles(page)).to_have_count(2)
        expect(box.get_by_role("button", name="Previous image")).to_be_hidden()
        page.reload()
        expect(tiles(page)).to_have_count(2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone(scheme: str, server: Running, easel: Easel, tab: Tab) -> None:
    phone = {"width": 360, "height": 740}
    easel.go.clear()
    with tab(server.url, viewport=phone, color_scheme=scheme, has_touch=True) as page:
        page.locator("summary").wait_for()
        assert overflow(page) == 0
        fill(page, Images="2", Negative_prompt="x" * 200, Seed="4294967294")
        assert overflow(page) == 0
        submit(page, "wide" * 60)
        expect(page.get_by_text("Step 2 of 4")).to_be_visible()
        assert overflow(page) == 0
        easel.go.set()
        expect(tiles(page)).to_have_count(2)
        assert overflow(page) == 0
        tiles(page).first.click()
        expect(viewer(page)).to_contain_text("Seed")
        assert overflow(page) == 0
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        darkness = sum(map(int, re.findall(r"\d+", paper)[:3])) < 3 * 128
        assert darkness == (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_focus_and_the_fields_can_be_seen(scheme: str, server: Running, tab: Tab) -> None:
    with tab(server.url, color_scheme=scheme) as page:
        form = page.locator("#form")
        card = colour(form, "backgroundColor")
        expect(prompt(page)).to_be_focused()
        expect(form).to_have_css("outline-style", "solid")
        paper = colour(page.locator("body"), "backgroundColor")
        assert contrast(colour(form, "outlineColor"), paper) >= 3
        assert contrast(colour(form, "borderTopColor"), paper) >= 3

        page.locator("summary").click()
        for name in ("steps", "scheduler", "format"):
            field = page.locator(f"[name={name}]")
            assert contrast(colour(field, "borderTopColor"), card) >= 3
            field.focus()
            expect(field).to_have_css("outline-style", "solid")
            expect(form).to_have_css("outline-style", "none")


def test_holds_still_for_those_who_ask(server: Running, easel: Easel, tab: Tab) -> None:
    easel.go.clear()
    with tab(server.url, reduced_motion="reduce") as page:
        submit(page, "a red circle")
        expect(page.get_by_text("Step 2 of 4")).to_be_visible()
        assert page.evaluate("document.getAnimations().length") == 0
        easel.go.set()
        expect(tiles(page)).to_have_count(1)


def test_the_files_and_their_headers(easel: Easel) -> None:
    with serving(easel, options=LOCKED) as server, httpx2.Client(base_url=server.url) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = page.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        assert page.headers["Referrer-Policy"] == "no-referrer"
        assert page.headers["Cache-Control"] == "no-cache"
        assert not re.search(
            r"https?:|<style|style=|\son\w+=|<script(?! type=\"module\" src)", page.text
        )

        named = re.findall(r'(?:href|src)="(static/[^"]+)"', page.text)
        assert len(set(named)) == 3
        for name in named:
            file = client.get(name)
            assert file.status_code == 200
            assert file.headers["Content-Security-Policy"] == policy
            same = client.get(name, headers={"If-None-Match": file.headers["ETag"]})
            assert (same.status_code, same.content) == (304, b"")
            assert client.head(name).headers["ETag"] == file.headers["ETag"]
        for missing in (
            "static/__init__.py",
            "static/",
            "static/..%2f__init__.py",
            "static/%2e%2e",
        ):
            assert client.get(missing).status_code == 404, missing
        assert (
            client.post("/", json={}, headers={"Authorization": f"Bearer {KEY}"}).status_code == 405
        )


def test_postcard_itself(t2i_env: dict[str, str], tab: Tab, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "t2i_cli", "serve", "-m", "postcard", "--port", "0"]
    command += ["--lora-dir", str(Path(__file__).parent / "adapters")]
    with subprocess.Popen(command, env=t2i_env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        with tab(process.stdout.readline().strip()) as page:
            expect(page.locator("#loras-names option")).to_have_text(["snow"])
            syntaxes = page.locator("[name=prompt_syntax] option")
            expect(syntaxes).to_have_text(["plain", "a1111", "compel"])
            fill(page, Steps="40", Seed="2")
            page.locator("[name=loras]").fill("snow:0.5")
            submit(page, "a large red circle on a white background")
            preview = page.locator(".pending.begun img")
            preview.wait_for()
            expect(page.get_by_text(re.compile(r"^Step \d+ of 40$"))).to_be_visible()
            expect(tiles(page)).to_have_count(1)
            tiles(page).first.click()
            with page.expect_download() as download:
                viewer(page).get_by_role("link", name="Download").click()
            file = tmp_path / "image.png"
            download.value.save_as(file)
            page.keyboard.press("Escape")
            page.get_by_label("Steps", exact=True).fill("2")
            submit(page, "a red zeppelin")
            expect(page.locator("#notes")).to_have_text("postcard does not know: zeppelin.")
            expect(tiles(page)).to_have_count(2)
        process.terminate()
        assert process.wait(120) == 0
    record = metadata.read_metadata(file)
    assert (record.width, record.height) == (128, 128)
    assert record.lock["pipeline"] == "StableDiffusionPipeline"
    asked = record.request
    assert asked["prompt"] == "a large red circle on a white background"
    assert (asked["seed"], asked["steps"]) == (2, 40)
    loras = asked["loras"]
    assert isinstance(loras, list)
    [lora] = loras
    assert (lora["source"], lora["weight"], lora["sha256"]) == ("snow", 0.5, sha256_of(SNOW))
