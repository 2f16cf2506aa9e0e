"""The accordion in a real browser (Debian's chromium): tick, generate, paste, block map, presets, X/Y/Z plot."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import ConsoleMessage, Locator, Page, expect, sync_playwright

from tests.dropdowns import choose, choose_of_host

from .server import WebUI

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
ACCORDION = "#script_txt2img_asag_enabled"
BLOCKS = "#script_txt2img_asag_blocks textarea, #script_txt2img_asag_blocks input"
CHECKPOINT = ":is(#setting_sd_model_checkpoint, .model_selection)"
WAIT = 120_000  # milliseconds; one core may run the host, the browser and more

expect.set_options(timeout=WAIT)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.fixture
def open_page(webui: WebUI) -> Iterator[Callable[[], Page]]:
    """Opens one more tab of the browser, at txt2img, set to a small picture. What the extension's own script writes
    to the console as an error fails the test; the host's pages log errors of their own."""
    errors: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and "asag" in message.text.lower():
            errors.append(message.text)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context()

        def page() -> Page:
            page = context.new_page()
            page.set_default_timeout(WAIT)
            page.on("console", note)
            page.goto(webui.url)
            page.wait_for_selector("#txt2img_generate")
            page.fill("#txt2img_prompt textarea", "a cat")
            for name, value in (("steps", 3), ("width", 128), ("height", 128)):
                number = page.locator(f"#txt2img_{name} input[type=number]")
                number.fill(str(value))
                number.press("Tab")
            return page

        yield page
        browser.close()
    assert not errors


@pytest.fixture
def page(open_page: Callable[[], Page]) -> Page:
    return open_page()


def switch(page: Page) -> None:
    """Open the accordion, which ticks its box, or close it, which unticks it."""
    page.click(f"{ACCORDION} > .label-wrap")


def unfold(page: Page) -> None:
    """Open what is below "Advanced"."""
    page.click("#script_txt2img_asag_advanced > .label-wrap")
    expect(page.locator(BLOCKS)).to_be_visible()


def block(page: Page, address: str) -> Locator:
    return page.locator(f'#script_txt2img_asag_map button[data-block="{address}"]')


def generate(*pages: Page) -> list[str]:
    """Generate in all tabs at once and return the infotexts under the pictures: with new (random) seeds, once they
    are there."""
    before = [infotext(page) for page in pages]
    for page in pages:
        page.click("#txt2img_generate")
    return [new_infotext(page, old) for page, old in zip(pages, before, strict=True)]


def infotext(page: Page) -> str:
    return page.locator("#html_info_txt2img").first.inner_text()


def new_infotext(page: Page, before: str) -> str:
    page.wait_for_function(
        """before => {
            const text = document.querySelector('#html_info_txt2img').innerText;
            return text.includes('Seed: ') && text !== before;
        }""",
        arg=before,
    )
    return infotext(page)


def scale_field(page: Page) -> Locator:
    return page.locator("#script_txt2img_asag_scale input[type=number]")


def test_ticking_the_box_guides_and_unticking_stops(page: Page) -> None:
    assert "ASAG" not in generate(page)[0]
    switch(page)
    expect(scale_field(page)).to_be_visible()
    scale_field(page).fill("4")
    scale_field(page).press("Tab")
    assert "ASAG: scale 4" in generate(page)[0]
    switch(page)
    assert "ASAG" not in generate(page)[0]


def test_pasting_a_text_sets_the_accordion(page: Page) -> None:
    text = 'a dog\nSteps: 3, Sampler: Euler, CFG scale: 7, Size: 128x128, ASAG: "scale 2.5; blocks mid, out.3"'
    page.fill("#txt2img_prompt textarea", text)
    page.click("#paste")
    expect(scale_field(page)).to_have_value("2.5")
    expect(page.locator(BLOCKS)).to_have_value("mid, out.3")
    assert "ASAG: " in generate(page)[0]
    page.fill("#txt2img_prompt textarea", text.partition(", ASAG")[0])
    page.click("#paste")
    expect(page.locator(f"{ACCORDION}-visible-checkbox")).not_to_be_checked()
    assert "ASAG" not in generate(page)[0]
    expect(scale_field(page)).to_have_value("2.5")


def test_a_text_that_cannot_be_read_is_told_and_the_rest_is_taken(page: Page) -> None:
    hosts: set[str | None] = set()
    page.on("request", lambda each: hosts.add(urlsplit(each.url).hostname))
    text = "a dog\nSteps: 3, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 128x128"
    value = "scale 2.5; sharpness 3; <img/src=//stranger.test/a> ![x](//stranger.test/b); blocks mid"
    page.fill("#txt2img_prompt textarea", f'{text}, ASAG: "{value}"')
    page.click("#paste")
    expect(scale_field(page)).to_have_value("2.5")
    expect(page.locator(f"{ACCORDION}-visible-checkbox")).to_be_checked()
    expect(page.locator(BLOCKS)).to_have_value("mid")
    for told in (page.get_by_test_id("toast-body"), page.locator("#script_txt2img_asag_notice .asag-notice")):
        expect(told.first).to_contain_text("some settings in the pasted text can't be read. The others are used. ")
        expect(told.first).to_contain_text("sharpness, <img/src=//stranger.test/a>: unknown")
    assert "ASAG: " in generate(page)[0]
    page.fill("#txt2img_prompt textarea", f"{text}, ASAG: scale 2.5")
    page.click("#paste")
    expect(page.locator("#script_txt2img_asag_notice .asag-notice")).to_have_count(0)
    assert "stranger.test" not in hosts


def test_send_to_img2img_takes_the_settings_along(page: Page) -> None:
    switch(page)
    unfold(page)
    scale_field(page).fill("2.5")
    scale_field(page).press("Tab")
    page.fill(BLOCKS, "mid, out.3")
    generate(page)
    page.click("#txt2img_send_to_img2img")
    expect(page.locator("#script_img2img_asag_scale input[type=number]")).to_have_value("2.5")
    expect(page.locator("#script_img2img_asag_enabled-visible-checkbox")).to_be_checked()
    blocks = "#script_img2img_asag_blocks textarea, #script_img2img_asag_blocks input"
    expect(page.locator(blocks)).to_have_value("mid, out.3")
    expect(page.locator("#script_img2img_asag_preset input")).to_have_value("Custom")


def test_the_map_says_whose_blocks_it_shows(webui: WebUI, page: Page) -> None:
    generate(page)
    switch(page)
    unfold(page)
    whose = page.locator("#script_txt2img_asag_map .asag-whose")
    expect(whose).to_have_text(f"These are the blocks of {webui.sd15}, the loaded checkpoint.")
    if webui.kind not in ("forge", "neo") or not webui.sdxl:
        return
    # These two load what is chosen when it's needed.
    try:
        choose_of_host(page, CHECKPOINT, webui.sdxl, beginning=True)
        expect(whose).to_have_text(
            f"These are the blocks of {webui.sdxl}, the chosen checkpoint. It loads when you generate."
        )
    finally:
        choose_of_host(page, CHECKPOINT, webui.sd15, beginning=True)
    expect(whose).not_to_contain_text(webui.sdxl)


def test_two_tabs(open_page: Callable[[], Page]) -> None:
    guided, unguided = pages = open_page(), open_page()
    unguided.fill("#txt2img_prompt textarea", "a dog")
    switch(guided)
    for _ in range(2):
        one, other = generate(*pages)
        assert one.startswith("a cat")
        assert "ASAG: " in one
        assert other.startswith("a dog")
        assert "ASAG" not in other


@pytest.mark.logs_errors
def test_a_wrong_value_is_told_in_the_page(webui: WebUI, page: Page) -> None:
    message = "ASAG settings: blocks: 'blocks.1'; allowed:"
    switch(page)
    unfold(page)
    page.fill(BLOCKS, "blocks.1")
    page.click("#txt2img_generate")
    # In place of whatever ends a request reForge's page shows an error of its own.
    told = page.get_by_text("TypeError: " if webui.kind == "reforge" else message)
    expect(told.first).to_be_visible()
    assert message in webui.log


def test_the_block_map_and_the_list_are_in_step(page: Page) -> None:
    generate(page)  # Forge loads its model for the first picture
    switch(page)
    unfold(page)
    expect(block(page, "mid")).to_have_attribute("aria-pressed", "true")
    block(page, "out.3").click()
    expect(page.locator(BLOCKS)).to_have_value("out.3")  # in place of auto
    block(page, "mid").click()
    expect(page.locator(BLOCKS)).to_have_value("mid, out.3")
    expect(block(page, "out.3")).to_have_attribute("aria-pressed", "true")
    assert "ASAG: " in generate(page)[0]
    assert "blocks mid, out.3" in infotext(page)
    page.fill(BLOCKS, "in.1-2, out.77")
    expect(block(page, "in.2")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#script_txt2img_asag_map .asag-unknown")).to_contain_text("out.77")


def test_a_block_opens_into_its_heads(page: Page) -> None:
    generate(page)
    switch(page)
    unfold(page)
    opened = page.locator("#script_txt2img_asag_map select.asag-open")
    heads = page.locator("#script_txt2img_asag_map button.asag-head")
    opened.select_option("mid")
    # auto is the middle block here, with all of its heads.
    expect(heads.first).to_have_attribute("aria-pressed", "true")
    page.locator("#script_txt2img_asag_map").get_by_role("button", name="mid:h0", exact=True).click()
    numbers = heads.count() - 2  # the last one is for the aligned ones
    expect(page.locator(BLOCKS)).to_have_value("mid:h1" + (f"-{numbers}" if numbers > 1 else ""))
    expect(block(page, "mid")).to_have_attribute("aria-pressed", "mixed")
    # By keyboard: the list, then the heads.
    opened.focus()
    page.keyboard.press("Tab")
    expect(heads.first).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator(BLOCKS)).to_have_value("mid")
    expect(heads.first).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    expect(page.locator(BLOCKS)).to_have_value("mid:aligned")
    assert "blocks mid:aligned" in generate(page)[0]


def test_a_preset_sets_what_is_generated_with(page: Page) -> None:
    switch(page)
    choose(page, "#script_txt2img_asag_preset", "Strong")
    expect(scale_field(page)).to_have_value("0.5")
    assert "scale 0.5; unit cfg" in generate(page)[0]
    scale_field(page).fill("2")
    scale_field(page).press("Tab")
    expect(page.locator("#script_txt2img_asag_preset input")).to_have_value("Custom")


def test_a_preset_that_is_kept_for_a_kind_of_model_comes_first(webui: WebUI, open_page: Callable[[], Page]) -> None:
    kind = webui.get("/asag/blocks")["kind"]
    presets, use = "#script_txt2img_asag_preset", "#script_txt2img_asag_preset_use"
    page = open_page()
    switch(page)
    choose(page, presets, "Strong")
    unfold(page)
    page.click("#script_txt2img_asag_presets > .label-wrap")
    notice = page.locator("#script_txt2img_asag_preset_notice").first
    choose(page, use, kind)
    try:
        expect(notice).to_contain_text(f"Strong comes first in the list for {kind}.")
        expect(scale_field(page)).to_have_value("0.5")
        other = open_page()
        switch(other)
        other.click(f"{presets} input")
        first = other.locator(f'{presets} [data-testid="dropdown-option"]').first
        expect(first).to_have_attribute("aria-label", f"★ Strong ({kind})")
        # The list was at Custom when the new order came; a second answer brings it back.
        expect(other.locator(f"{presets} input")).to_have_value("Paper")
        first.click()
        expect(scale_field(other)).to_have_value("0.5")
        expect(other.locator(f"{presets} input")).to_have_value("Strong")
    finally:
        choose(page, use, "any model")
        expect(notice).to_contain_text("Strong is for any model.")


def test_pasting_names_the_preset(page: Page) -> None:
    settings = "scale 1.5; blocks late; end 0.6; every 2"
    text = f"a dog\nSteps: 3, Sampler: Euler, CFG scale: 7, Size: 128x128, ASAG: {settings}"
    page.fill("#txt2img_prompt textarea", text)
    page.click("#paste")
    expect(page.locator("#script_txt2img_asag_preset input")).to_have_value("Fast")


def test_a_plot_over_the_scale(page: Page) -> None:
    choose_of_host(page, "#txt2img_script_container #script_list", "X/Y/Z plot")
    choose_of_host(page, "#script_txt2img_xyz_plot_x_type", "[ASAG] Scale")
    page.wait_for_timeout(3000)  # the host's answer to the choice empties the values
    page.fill("#script_txt2img_xyz_plot_x_values textarea, #script_txt2img_xyz_plot_x_values input", "0, 4, 8")
    assert "Seed: " in generate(page)[0]
    # Three cells of 128 pixels side by side, with their legends.
    page.wait_for_function(
        "() => [...document.querySelectorAll('#txt2img_gallery img')].some(each => each.naturalWidth >= 384)"
    )


def test_image_to_image_has_it_too(page: Page) -> None:
    page.locator("#tabs > .tab-nav > button", has_text="img2img").click()
    page.click("#script_img2img_asag_enabled > .label-wrap")
    expect(page.locator("#script_img2img_asag_scale input[type=number]")).to_be_visible()
    page.click("#script_img2img_asag_advanced > .label-wrap")
    place = page.locator("#script_img2img_asag_map")
    expect(place.locator("button, .asag-told").first).to_be_visible()
