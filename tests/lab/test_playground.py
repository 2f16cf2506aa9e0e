"""The playground in a real browser, in both gradios: the accordion, the block map and the presets that WebUIs show.

`make test` sets the two environments up; where one is missing its tests skip.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Route,
    expect,
    sync_playwright,
)

from tests.dropdowns import choose

ROOT = Path(__file__).parent.parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
WAIT = 60_000  # milliseconds; a test that passes doesn't wait, and a busy machine is slow
START = 300  # seconds, to import gradio and torch on a busy core

PRESET, UNIT = "#asag_preset", "#asag_unit"
SECTIONS = ("method", "steps", "against_burnt_colours", "speed_and_figures")

expect.set_options(timeout=WAIT)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


class Playground:
    """A server in the environment of one gradio."""

    def __init__(self, python: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.presets = f"http://127.0.0.1:{port}", folder / "asag-presets.json"
        command = [
            str(python),
            "-m",
            "asag",
            "playground",
            "--port",
            str(port),
            "--steps",
            "4",
            "--presets",
            str(folder),
        ]
        self.log = open(folder / "log", "w+")  # noqa: SIM115 - closed with the server
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self.log, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        for _ in range(START * 2):
            try:
                requests.get(f"{self.url}/asag/UNet/blocks", timeout=5).raise_for_status()
                return
            except requests.RequestException:
                assert self.process.poll() is None, Path(self.log.name).read_text()
                time.sleep(0.5)
        raise AssertionError(Path(self.log.name).read_text())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="module", params=["gradio4", "gradio3"])
def playground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    python = ROOT / f".venv-{request.param}" / "bin" / "python"
    if not (python.parent.parent / ".ready").exists():
        pytest.skip(f"no environment with {request.param}: `make test` sets it up")
    server = Playground(python, tmp_path_factory.mktemp(request.param))
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


def is_strangers(url: str) -> bool:
    return urlsplit(url).hostname == "stranger.test"


# Whether nothing has been drawn for a second and a half. The choice of a model changes many fields, and gradio 3 asks
# for some of their pictures late, with the values that they had.
SETTLED = """() => {
    const busy = document.querySelector('#told').innerText.trim() !== '';
    if (busy || !window.quietSince) window.quietSince = Date.now();
    return Date.now() - window.quietSince > 1500;
}"""


@pytest.fixture
def open_page(playground: Playground, browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the playground, at the UNet if wanted, with everything unfolded but one's own presets. An error in the
    console or in a script fails the test."""
    errors: list[str] = []
    contexts: list[BrowserContext] = []

    def note(message: ConsoleMessage) -> None:
        # gradio asks for fonts elsewhere; a machine without a network has none.
        if message.type == "error" and "ERR_" not in message.text and "fonts" not in message.text:
            errors.append(message.text)

    def page(
        inventory: Callable[[], dict[str, Any]] | None = None,
        hurried: bool = False,
        watched: bool = False,
        unet: bool = True,
        **context: Any,
    ) -> Page:
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        if hurried:
            # The page's time is the test's then: page.clock.
            page.clock.install()
        page.set_default_timeout(WAIT)
        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        if watched:
            page.on("request", lambda request: errors.append(request.url) if is_strangers(request.url) else None)
        if inventory:
            page.route("**/blocks?*", lambda route: route.fulfill(json=inventory()))
        page.goto(playground.url)
        page.wait_for_selector("#plain img")
        page.click("#asag_advanced > .label-wrap")
        for section in SECTIONS:
            page.click(f"#asag_section_{section} > .label-wrap")
        page.wait_for_selector(".asag-map button, .asag-map .asag-told")
        if unet:
            first = page.locator("#guided img").get_attribute("src")
            page.get_by_label("UNet", exact=True).check()
            page.wait_for_function("first => document.querySelector('#guided img')?.src !== first", arg=first)
            if not inventory:
                page.wait_for_selector('.asag-map button[data-block="mid"]')
            if not hurried:
                page.wait_for_function(SETTLED)
        return page

    yield page
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()


def number(page: Page, name: str) -> Locator:
    return page.locator(f"#asag_{name} input[type=number]")


def text_of(page: Page, name: str) -> Locator:
    return page.locator(f"#asag_{name} textarea, #asag_{name} input")


def blocks(page: Page) -> Locator:
    return text_of(page, "blocks")


def block(page: Page, address: str) -> Locator:
    return page.locator(f'.asag-map button[data-block="{address}"]')


def preset(page: Page) -> Locator:
    return page.locator("#asag_preset input")


def options(page: Page, dropdown: str) -> Locator:
    return page.locator(f'{dropdown} [data-testid="dropdown-option"]')


def picture(page: Page, name: str) -> bytes:
    source = page.locator(f"#{name} img").get_attribute("src")
    return page.evaluate("async url => [...new Uint8Array(await (await fetch(url)).arrayBuffer())]", source)


def set_number(page: Page, name: str, value: float) -> None:
    number(page, name).fill(str(value))
    number(page, name).press("Tab")


def wait_for_other(page: Page, name: str, before: bytes) -> bytes:
    for _ in range(WAIT // 200):
        if (now := picture(page, name)) != before:
            return now
        page.wait_for_timeout(200)
    raise AssertionError(f"the picture '{name}' stays as it was")


def test_sliders_move_the_guided_picture_and_the_switch_takes_it_back(page: Page) -> None:
    plain, guided = picture(page, "plain"), picture(page, "guided")
    assert plain != guided
    set_number(page, "scale", 8)
    stronger = wait_for_other(page, "guided", guided)
    assert stronger not in (plain, guided)
    page.get_by_label("ASAG", exact=True).uncheck()
    assert wait_for_other(page, "guided", stronger) == picture(page, "plain") == plain


def test_it_starts_where_the_demo_does(open_page: Callable[..., Page]) -> None:
    page = open_page(unet=False)
    expect(page.locator("#cfg input[type=number]")).to_have_value("1")
    expect(blocks(page)).to_have_value("joint.1")
    expect(preset(page)).to_have_value("Custom")
    for name, value in (("scale", "0.5"), ("strength", "0.25"), ("contrast", "0")):
        expect(number(page, name)).to_have_value(value)
    expect(block(page, "joint.1")).to_have_attribute("aria-pressed", "true")
    assert picture(page, "plain") != picture(page, "guided")
    page.get_by_label("UNet", exact=True).check()
    expect(block(page, "mid")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#cfg input[type=number]")).to_have_value("2")
    expect(preset(page)).to_have_value("Paper")


def test_what_does_not_apply_is_not_shown(page: Page) -> None:
    with_sinkhorn = ("iterations", "strength", "tolerance")
    shown = {name: page.locator(f"#asag_{name}") for name in (*with_sinkhorn, "blur")}
    for method, names in (("seg", ("blur",)), ("similarity", with_sinkhorn), ("pag", ()), ("asag", with_sinkhorn)):
        choose(page, "#asag_method", method)
        for name, field in shown.items():
            expect(field).to_be_visible(visible=name in names)
    for name in ("hires", "hires_scale", "hires_blocks", "figures", "section_hires_fix"):
        expect(page.locator(f"#asag_{name}")).not_to_be_visible()
    expect(page.locator("#asag_reuse")).to_be_visible()


def test_the_slider_ends_at_10_and_the_field_takes_more(page: Page) -> None:
    slider = page.locator("#asag_scale input[type=range]")
    expect(slider).to_have_attribute("max", "10")
    set_number(page, "scale", 30)
    expect(number(page, "scale")).to_have_value("30")
    # A value that comes from elsewhere, such as a pasted text, holds when the field is left, too.
    page.click("#asag_presets > .label-wrap")
    text = page.locator("#asag_preset_text textarea, #asag_preset_text input")
    text.fill("far: scale 45.5")
    page.click("#asag_preset_import")
    expect(number(page, "scale")).to_have_value("45.5")
    number(page, "scale").focus()
    number(page, "scale").press("Tab")
    page.click("#asag_preset_export")
    expect(text).to_have_value("far: scale 45.5")
    set_number(page, "scale", 300)
    expect(number(page, "scale")).to_have_value("100")
    slider.fill("10")
    expect(number(page, "scale")).to_have_value("10")
    page.click("#asag_preset_delete")
    expect(page.locator("#asag_preset_notice").first).to_contain_text("allowed: your own presets: ")
    choose(page, PRESET, "far")
    page.click("#asag_preset_delete")
    expect(page.locator("#asag_preset_notice").first).to_contain_text("Deleted: far")


def test_the_slider_and_its_help_follow_the_unit_and_the_field_takes_all(page: Page) -> None:
    slider, help_text = page.locator("#asag_scale input[type=range]"), page.locator("#asag_scale")
    for unit, most, step, told in (
        ("cfg", "2", "0.05", "compared with CFG"),
        ("push", "0.5", "0.005", "in each step"),
        ("paper", "10", "0.1", "the paper uses 1.5"),
    ):
        choose(page, UNIT, unit)
        for name in ("scale", "hires_scale"):
            expect(page.locator(f"#asag_{name} input[type=range]")).to_have_attribute("max", most)
            expect(page.locator(f"#asag_{name} input[type=number]")).to_have_attribute("step", step)
        expect(help_text).to_contain_text(told)
        set_number(page, "scale", 30)
        expect(number(page, "scale")).to_have_value("30")
        slider.fill(most)
        expect(number(page, "scale")).to_have_value(most)
    # A preset brings its unit and its scale, which the slider shows.
    set_number(page, "scale", 0.035)
    choose(page, UNIT, "push")
    expect(slider).to_have_attribute("step", "0.005")
    expect(slider).to_have_value("0.035")


def test_links_open_in_a_tab_of_their_own(page: Page) -> None:
    links = page.locator(".asag-about a")
    expect(links.last).to_have_attribute("href", "https://arxiv.org/abs/2511.07499")
    for link in links.all():
        expect(link).to_have_attribute("target", "_blank")


def test_a_wrong_value_is_told_beside_the_pictures(page: Page) -> None:
    blocks(page).fill("out.99")
    told = page.locator("#told").first
    expect(told).to_contain_text("'out.99'; this model has: in.1, in.3, mid, out.0-1")
    blocks(page).fill("mid")
    expect(told).not_to_contain_text("out.99")


def test_map_and_list_are_in_step(page: Page) -> None:
    expect(block(page, "mid")).to_have_attribute("aria-pressed", "true")
    # A block takes the place of auto, and joins what was chosen.
    block(page, "in.1").click()
    expect(blocks(page)).to_have_value("in.1")
    expect(block(page, "mid")).to_have_attribute("aria-pressed", "false")
    block(page, "mid").click()
    expect(blocks(page)).to_have_value("in.1, mid")
    expect(block(page, "in.1")).to_have_attribute("aria-pressed", "true")
    block(page, "mid").click()
    expect(blocks(page)).to_have_value("in.1")
    expect(block(page, "mid")).to_have_attribute("aria-pressed", "false")
    # The last one stays: a list can't be empty.
    block(page, "in.1").click()
    expect(page.locator(".asag-note")).to_contain_text("Only in.1 is weakened.")
    expect(blocks(page)).to_have_value("in.1")
    blocks(page).fill("out.0-1")
    expect(block(page, "out.1")).to_have_attribute("aria-pressed", "true")
    page.locator('.asag-map button[data-word="all"]').click()
    expect(blocks(page)).to_have_value("all")
    expect(block(page, "in.3")).to_have_attribute("aria-pressed", "true")


class HeldAnswers:
    """Holds the map's questions until they are let go, those that toggle a block alone, if so wanted; or what the
    page asks at other addresses."""

    def __init__(self, page: Page, toggles: bool = True, addresses: str = "**/blocks?*") -> None:
        self.page, self.routes, self.everything = page, [], not toggles
        page.route(addresses, self._came)

    def _came(self, route: Route) -> None:
        if self.everything or "toggle=" in route.request.url:
            self.routes.append(route)
        else:
            route.continue_()

    def wait_for(self, count: int) -> None:
        for _ in range(WAIT // 50):
            if len(self.routes) >= count:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{len(self.routes)} questions of {count}")

    def let_go(self) -> None:
        """Answer the oldest, and wait until the page has the answer."""
        route = self.routes.pop(0)
        with self.page.expect_response(route.request.url):
            route.continue_()
        self.page.wait_for_timeout(300)

    def let_all_go(self) -> None:
        """Answer all, and hold none any more."""
        self.everything = False
        for route in self.routes:
            route.continue_()
        self.routes.clear()


def test_what_is_typed_holds_against_a_late_answer_to_a_click(page: Page) -> None:
    held = HeldAnswers(page)
    block(page, "in.1").click()
    held.wait_for(1)
    blocks(page).fill("out.0-1")
    held.let_go()
    expect(blocks(page)).to_have_value("out.0-1")
    expect(block(page, "out.1")).to_have_attribute("aria-pressed", "true")


def test_clicks_that_come_faster_than_answers_all_count(page: Page) -> None:
    held = HeldAnswers(page)
    for name in ("in.1", "in.3"):
        block(page, name).click()
    held.wait_for(1)
    held.let_go()
    held.wait_for(1)
    held.let_go()
    expect(blocks(page)).to_have_value("in.1, in.3")
    expect(block(page, "in.3")).to_have_attribute("aria-pressed", "true")


def test_a_slow_answer_is_waited_for(open_page: Callable[..., Page]) -> None:
    page = open_page(hurried=True)
    held = HeldAnswers(page, toggles=False)
    blocks(page).fill("out.0-1")
    page.clock.run_for(1000)
    held.wait_for(1)
    # Longer than any answer holds: it isn't asked for again, and the first one counts.
    page.clock.run_for(30_000)
    assert len(held.routes) == 1
    held.let_go()
    page.clock.run_for(1000)
    expect(block(page, "out.1")).to_have_attribute("aria-pressed", "true")


def test_a_button_that_is_pressed_while_an_answer_comes_gets_its_click(page: Page) -> None:
    held = HeldAnswers(page, toggles=False)
    blocks(page).fill("out.0-1")
    held.wait_for(1)
    block(page, "in.1").hover()
    page.mouse.down()
    held.let_go()
    held.everything = False
    page.mouse.up()
    held.wait_for(1)
    held.let_go()
    expect(blocks(page)).to_have_value("in.1, out.0-1")


def test_a_click_on_the_only_chosen_block_says_why_nothing_changes(page: Page) -> None:
    blocks(page).fill("mid")
    block(page, "mid").click()
    note = page.locator(".asag-note")
    expect(note).to_have_text("Only mid is weakened. Choose another block first, or switch ASAG off.")
    expect(blocks(page)).to_have_value("mid")
    block(page, "in.1").click()
    expect(blocks(page)).to_have_value("in.1, mid")
    expect(note).to_have_count(0)


def test_shared_lists_are_told_in_the_models_own_addresses(page: Page) -> None:
    blocks(page).fill("d0-d1, u1")
    expect(page.locator(".asag-counted")).to_have_text(["d0-1 is in.1, in.3 here", "u1 is out.1 here"])
    expect(block(page, "in.3")).to_have_attribute("aria-pressed", "true")
    expect(block(page, "out.0")).to_have_attribute("aria-pressed", "false")


def test_unknown_and_unreadable_lists_are_told_by_the_map(page: Page) -> None:
    blocks(page).fill("mid, joint.7")
    expect(page.locator(".asag-unknown")).to_contain_text("joint.7: not in this model")
    expect(block(page, "mid")).to_have_attribute("aria-pressed", "true")
    blocks(page).fill("blocks.1")
    expect(page.locator(".asag-map .asag-told")).to_contain_text("'blocks.1'; allowed:")
    block(page, "mid").click()
    expect(blocks(page)).to_have_value("mid")


def test_the_map_by_keyboard(page: Page) -> None:
    block(page, "in.1").focus()
    page.keyboard.press("ArrowRight")
    expect(block(page, "in.3")).to_be_focused()
    page.keyboard.press("Space")
    expect(blocks(page)).to_have_value("in.3")
    expect(block(page, "in.3")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(block(page, "out.1")).to_be_focused()
    # One stop of Tab for the whole map, beside the ready-made choices.
    assert page.locator('.asag-map button[data-block][tabindex="0"]').count() == 1


def test_a_block_opens_into_its_heads(page: Page) -> None:
    page.locator(".asag-open").select_option("in.3")
    heads = page.locator(".asag-head")
    expect(heads.first).to_have_attribute("aria-pressed", "false")
    heads.first.click()
    expect(blocks(page)).to_have_value("in.3:h0")
    expect(heads.first).to_have_attribute("aria-pressed", "true")
    expect(block(page, "in.3")).to_have_attribute("aria-pressed", "mixed")
    page.keyboard.press("ArrowLeft")
    expect(heads.last).to_be_focused()
    page.keyboard.press("Space")
    expect(blocks(page)).to_have_value("in.3:aligned")
    expect(heads.last).to_be_focused()
    page.locator(".asag-open").select_option("–")
    expect(heads).to_have_count(0)


def flux(chosen: str) -> dict[str, Any]:
    doubles = [{"address": f"double.{n}", "layers": 1, "chosen": 0} for n in range(19)]
    singles = [{"address": f"single.{n}", "layers": 2, "chosen": int(f"single.{n}" == chosen)} for n in range(38)]
    return {
        "family": "Flux",
        "experimental": True,
        "auto": "single.9",
        "auto_reason": "the middle",
        "late": "single.19",
        "blocks": doubles + singles,
        "text": "auto",
        "unknown": [],
        "problem": None,
    }


def loaded(checkpoint: str) -> dict[str, Any]:
    """What a WebUI's answer says beside the blocks."""
    return {"checkpoint": checkpoint, "loaded": True, "chosen_checkpoint": None, "chosen_problem": None}


def look_elsewhere_and_back(page: Page) -> None:
    """As a user does who loads another checkpoint in another tab."""
    page.evaluate("() => window.dispatchEvent(new Event('focus'))")


def test_the_map_asks_only_when_something_changed(open_page: Callable[..., Page]) -> None:
    page = open_page(hurried=True)
    page.clock.run_for(10_000)
    page.wait_for_timeout(500)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/blocks?" in request.url else None)
    page.clock.run_for(120_000)
    page.wait_for_timeout(500)
    assert asked == []
    blocks(page).fill("in.1")
    page.clock.run_for(1000)
    expect(block(page, "in.1")).to_have_attribute("aria-pressed", "true")
    page.clock.run_for(120_000)
    page.wait_for_timeout(500)
    assert len(asked) == 1
    # Folded and unfolded: what happened meanwhile isn't known.
    for _ in range(2):
        page.click("#asag_section_blocks > .label-wrap")
        page.clock.run_for(1000)
        page.wait_for_timeout(500)
    assert len(asked) == 2


def test_a_change_that_the_server_takes_up_late_is_seen(open_page: Callable[..., Page]) -> None:
    """The page shows a checkpoint before the host has loaded it: a double of a host's field here."""
    answers = [{**flux("single.9"), **loaded("one.safetensors")}]
    page = open_page(lambda: answers[-1], unet=False, hurried=True)
    page.clock.run_for(10_000)
    page.evaluate(
        """() => document.body.insertAdjacentHTML(
            "beforeend", "<div id='setting_sd_model_checkpoint'><input value='two'></div>")"""
    )
    page.clock.run_for(1000)
    page.wait_for_timeout(500)
    answers.append({**answers[0], "checkpoint": "two.safetensors"})
    page.clock.run_for(10_000)
    expect(page.locator(".asag-whose")).to_have_text("These are the blocks of two.safetensors, the loaded checkpoint.")


def test_a_ladder_for_transformers_redrawn_when_the_model_changes(open_page: Callable[..., Page]) -> None:
    """The route's answers are a double's here: no transformer is loaded."""
    answers = [flux("single.9")]
    page = open_page(lambda: answers[-1], unet=False, viewport={"width": 480, "height": 900})
    expect(page.locator(".asag-ladder .asag-block")).to_have_count(57)
    expect(block(page, "single.9")).to_have_attribute("aria-pressed", "mixed")
    expect(block(page, "single.9")).to_have_attribute("aria-label", "single.9: 2 layers, 1 weakened")
    expect(page.locator(".asag-legend")).to_have_text("weakenedpartly weakenedunchangedauto")
    expect(page.locator(".asag-family")).to_contain_text("Flux (experimental); auto is single.9: the middle")
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    answers.append({"family": "other", **{k: v for k, v in flux("").items() if k != "family"}, "blocks": []})
    look_elsewhere_and_back(page)
    expect(page.locator(".asag-ladder .asag-block")).to_have_count(0)
    expect(page.locator(".asag-family")).to_contain_text("other")


def test_whose_blocks_the_map_shows(open_page: Callable[..., Page]) -> None:
    """The route's answers are a double's here, as a WebUI gives them."""
    answers = [{**flux("single.9"), **loaded("one.safetensors")}]
    page = open_page(lambda: answers[-1], unet=False)
    whose = page.locator(".asag-whose")
    expect(whose).to_have_text("These are the blocks of one.safetensors, the loaded checkpoint.")
    answers.append({**answers[0], "chosen_checkpoint": "two.ckpt", "chosen_problem": "a .ckpt file doesn't say it"})
    look_elsewhere_and_back(page)
    expect(whose).to_have_text(
        "These are the blocks of one.safetensors, the loaded checkpoint. You have chosen two.ckpt. It loads when you "
        "generate. Its blocks may differ (a .ckpt file doesn't say it)."
    )
    answers.append({**answers[0], "checkpoint": "three.safetensors", "loaded": False})
    look_elsewhere_and_back(page)
    expect(whose).to_have_text(
        "These are the blocks of three.safetensors, the chosen checkpoint. It loads when you generate."
    )


def test_the_presets_look_which_model_is_chosen_when_that_changes(open_page: Callable[..., Page]) -> None:
    """A double of a host's field for its checkpoint is put into the page."""
    page = open_page(hurried=True)
    page.clock.run_for(10_000)
    page.evaluate(
        """() => {
            window.looks = 0;
            document.querySelector(".asag-look").addEventListener("click", () => window.looks++);
            document.body.insertAdjacentHTML(
                "beforeend", "<div id='setting_sd_model_checkpoint'><input value='one'></div>");
        }"""
    )
    # At once, and when the host has taken it up; then no more.
    for value, seconds, looks in (("one", 1, 1), ("one", 10, 2), ("one", 60, 2), ("two", 1, 3), ("two", 60, 4)):
        set_checkpoint(page, value)
        page.clock.run_for(1000 * seconds)
        assert page.evaluate("() => window.looks") == looks
    # Not while the list is open.
    page.locator("#asag_preset input").focus()
    set_checkpoint(page, "one")
    page.clock.run_for(60_000)
    assert page.evaluate("() => window.looks") == 4
    page.locator("#asag_preset input").blur()
    page.clock.run_for(60_000)
    assert page.evaluate("() => window.looks") == 6


def set_checkpoint(page: Page, name: str) -> None:
    page.evaluate("name => (document.querySelector('#setting_sd_model_checkpoint input').value = name)", name)


def test_presets_set_everything_and_say_when_something_was_changed(page: Page) -> None:
    expect(preset(page)).to_have_value("Paper")
    choose(page, PRESET, "Fast")
    expect(blocks(page)).to_have_value("late")
    expect(text_of(page, "end")).to_have_value("0.6")
    choose(page, PRESET, "Strong")
    expect(number(page, "scale")).to_have_value("0.5")
    expect(blocks(page)).to_have_value("auto")
    expect(text_of(page, "end")).to_have_value("1")
    text_of(page, "end").fill("60%")
    text_of(page, "end").press("Tab")
    expect(preset(page)).to_have_value("Custom")
    text_of(page, "end").fill("1")
    text_of(page, "end").press("Tab")
    expect(preset(page)).to_have_value("Strong")
    set_number(page, "scale", 0.75)
    expect(preset(page)).to_have_value("Custom")
    set_number(page, "scale", 0.5)
    expect(preset(page)).to_have_value("Strong")


def test_presets_of_ones_own(playground: Playground, open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.click("#asag_presets > .label-wrap")
    notice = page.locator("#asag_preset_notice").first
    name = page.locator("#asag_preset_name textarea, #asag_preset_name input")
    text = page.locator("#asag_preset_text textarea, #asag_preset_text input")
    set_number(page, "scale", 3.3)
    name.fill("Paper")
    page.click("#asag_preset_save")
    expect(notice).to_contain_text("'Paper' comes with ASAG")
    name.fill("mine")
    page.click("#asag_preset_save")
    expect(notice).to_contain_text("Saved: mine")
    expect(preset(page)).to_have_value("mine")
    assert json.loads(playground.presets.read_text()) == {"mine": {"scale": 3.3}}
    page.click("#asag_preset_export")
    expect(text).to_have_value("mine: scale 3.3")
    other = open_page()
    # Switching it on, which opens the accordion in a WebUI, brings what others saved.
    other.get_by_label("ASAG", exact=True).uncheck()
    other.get_by_label("ASAG", exact=True).check()
    choose(other, PRESET, "mine")
    expect(number(other, "scale")).to_have_value("3.3")
    use = page.locator("#asag_preset_use input")
    use.fill("SDXL")
    use.press("Enter")
    expect(notice).to_contain_text("mine comes first in the list for SDXL.")
    assert json.loads(playground.presets.read_text())[":use for"] == {"mine": "SDXL"}
    use.fill("any model")
    use.press("Enter")
    expect(notice).to_contain_text("mine is for any model.")
    name.fill("ours")
    page.click("#asag_preset_rename")
    expect(preset(page)).to_have_value("ours")
    text.fill("theirs: scale 2.0; blocks in.1")
    page.click("#asag_preset_import")
    expect(blocks(page)).to_have_value("in.1")
    expect(preset(page)).to_have_value("theirs")
    page.click("#asag_preset_delete")
    expect(notice).to_contain_text("Deleted: theirs")
    assert json.loads(playground.presets.read_text()) == {"ours": {"scale": 3.3}}
    page.click("#asag_preset_delete")
    expect(notice).to_contain_text("allowed: your own presets: ours")


@pytest.fixture
def kept(playground: Playground) -> Iterator[Callable[[dict[str, float]], None]]:
    """Keeps presets with these scales, as another tab does. Afterwards there is what there was."""
    before = playground.presets.read_text() if playground.presets.exists() else "{}"
    yield lambda scales: playground.presets.write_text(
        json.dumps({name: {"scale": scale} for name, scale in scales.items()})
    )
    playground.presets.write_text(before)


def held_events(page: Page) -> HeldAnswers:
    """Holds what the accordion asks the server, as on a slow machine."""
    return HeldAnswers(page, toggles=False, addresses="**/run/predict*")


def test_an_open_list_shows_all_when_other_names_arrive(page: Page, kept: Callable[[dict[str, float]], None]) -> None:
    kept({"mine": 3.25, "another's": 2.25})
    held = held_events(page)
    page.get_by_label("ASAG", exact=True).uncheck()
    held.wait_for(1)
    preset(page).click()
    expect(options(page, PRESET).filter(has_text="Strong")).to_be_visible()
    held.let_all_go()
    expect(options(page, PRESET).filter(has_text="another's")).to_be_visible()
    # The list was at Custom when the names came; a second answer brings it back.
    expect(preset(page)).to_have_value("Paper")
    expect(options(page, PRESET)).to_have_count(7)
    options(page, PRESET).filter(has_text="another's").click()
    expect(number(page, "scale")).to_have_value("2.25")


def test_an_open_list_shows_all_when_another_value_arrives(page: Page) -> None:
    held = held_events(page)
    set_number(page, "scale", 3.125)
    held.wait_for(1)
    preset(page).click()
    expect(options(page, PRESET).filter(has_text="Strong")).to_be_visible()
    names = options(page, PRESET).count()
    held.let_all_go()
    expect(preset(page)).to_have_value("Custom")
    expect(options(page, PRESET)).to_have_count(names)
    held.everything = True
    options(page, PRESET).filter(has_text="Strong").click()
    held.wait_for(1)
    page.click(f"{UNIT} input")
    expect(options(page, UNIT)).to_have_count(3)
    held.let_all_go()
    expect(page.locator(f"{UNIT} input")).to_have_value("cfg")
    expect(options(page, UNIT)).to_have_count(3)


def test_an_open_list_follows_what_is_typed_and_closes(page: Page) -> None:
    preset(page).click()
    expect(options(page, PRESET).filter(has_text="Strong")).to_be_visible()
    preset(page).fill("Fas")
    expect(options(page, PRESET)).to_have_count(1)
    preset(page).press("Escape")
    expect(options(page, PRESET)).to_have_count(0)
    preset(page).fill("Strong")
    preset(page).press("Enter")
    expect(number(page, "scale")).to_have_value("0.5")


def test_each_entry_can_be_chosen_when_another_tab_changed_the_order(
    page: Page, kept: Callable[[dict[str, float]], None]
) -> None:
    scales = {"one": 3.25, "two": 3.5, "three": 3.75, "four": 4.25}
    kept(scales)
    page.get_by_label("ASAG", exact=True).uncheck()
    choose(page, PRESET, "two")
    expect(number(page, "scale")).to_have_value("3.5")
    del scales["one"]
    kept(scales)
    page.get_by_label("ASAG", exact=True).check()
    preset(page).click()
    # What stands now where "two" did.
    expect(options(page, PRESET).nth(6)).to_have_attribute("aria-label", "three")
    expect(preset(page)).to_have_value("two")
    options(page, PRESET).nth(6).click()
    expect(number(page, "scale")).to_have_value("3.75")
    choose(page, PRESET, "four")
    expect(number(page, "scale")).to_have_value("4.25")
    # The answer to a choice doesn't change the order.
    del scales["two"]
    kept(scales)
    for name in ("three", "four"):
        choose(page, PRESET, name)
        expect(number(page, "scale")).to_have_value(str(scales[name]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_for_screen_readers(open_page: Callable[..., Page], scheme: str) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": 700, "height": 900})
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('[id^=asag_] input, [id^=asag_] textarea, [id^=asag_] button')]
            .filter(each => each.offsetParent)
            .filter(each => !(each.labels && each.labels.length) && !each.ariaLabel && !each.innerText.trim()
                && !each.title)
            .map(each => each.outerHTML)"""
    )
    assert not unnamed
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")


MARKUP = '<img src="//stranger.test/a.png"><script>fetch("//stranger.test/b")</script>![x](//stranger.test/c.png)'


def test_texts_of_strangers_are_shown_as_text(playground: Playground, open_page: Callable[..., Page]) -> None:
    """Markup in every text field, with every button pressed, and in the file of presets: nothing in it is loaded."""
    short = "<img src=//stranger.test/d>![x](//stranger.test/e)"
    kept = playground.presets.read_text() if playground.presets.exists() else None
    playground.presets.write_text(json.dumps({short: {"scale": 2.75}, f"{short} 2": {MARKUP: 1}}))
    try:
        page = open_page(watched=True)
        # The file is read when the page is built, and again whenever the accordion's switch changes.
        page.get_by_label("ASAG", exact=True).uncheck()
        expect(page.locator("#asag_preset")).to_contain_text("asag-presets.json keeps presets that can't be used")
        page.click("#asag_presets > .label-wrap")
        choose(page, PRESET, short)
        expect(number(page, "scale")).to_have_value("2.75")
        fields = page.locator("input[type=text], input:not([type]), textarea").filter(visible=True)
        for field in fields.all():
            field.fill(MARKUP)
            field.press("Tab")
        notice = page.locator("#asag_preset_notice").first
        text = page.locator("#asag_preset_text textarea, #asag_preset_text input")
        for button in ("save", "rename", "delete", "export", "import"):
            page.click(f"#asag_preset_{button}")
            expect(notice).to_contain_text("allowed: ")
        text.fill(f"{short} 3: scale 2.5")
        blocks(page).fill("mid")
        page.click("#asag_preset_import")
        expect(notice).to_have_text(f"Saved: {short} 3")
        text.fill(f"{short} 4: scale {MARKUP}")
        page.click("#asag_preset_import")
        expect(notice).to_contain_text("<img src=")
        blocks(page).fill(MARKUP)
        expect(page.locator(".asag-map .asag-told")).to_contain_text("<img src=")
        # Of the blocks or of the caption, whichever gradio 3 asked for last.
        expect(page.locator("#told").first).to_contain_text("<img")
        page.wait_for_timeout(500)
    finally:
        playground.presets.unlink()
        if kept is not None:
            playground.presets.write_text(kept)
