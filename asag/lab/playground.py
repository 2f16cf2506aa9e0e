"""`python -m asag playground`: the WebUI's accordion and block map in a page of their own, on the embedded model.

For trying without a WebUI, and for tests in a browser. Runs in gradio 3.41 and 4.40.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from asag.hosts.diffusers_models import FAMILIES
from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab import arguments
from asag.lab.embedded import drawings, shipped
from asag.models.base import family_of
from asag.presets import Presets
from asag.settings import AsagSettings, SettingsError
from asag.webui import block_map, ui
from asag.webui.plain import as_html

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "javascript" / "asag.js"
STYLE = ROOT / "style.css"
PICTURES = 4  # of one caption, side by side, for one alone says little
ENLARGED = 5
INTRODUCTION = """# ASAG playground
The small model that comes with the extension draws the same four pictures without ASAG and with it. Change anything:
both follow."""


@contextmanager
def input_accordion(value: bool, label: str, elem_id: str) -> Iterator[Any]:
    """Stands in for the WebUIs' InputAccordion (modules/ui_components.py): its checkbox beside an open accordion."""
    box = gr.Checkbox(True, label=label, elem_id=f"{elem_id}-checkbox")
    with gr.Accordion("Settings", open=True, elem_id=elem_id):
        yield box


class Studio:
    """Draws. One drawing at a time; of those that wait, only the newest is made."""

    def __init__(self) -> None:
        self.pipeline = shipped.load_pipeline()
        self.lock = threading.Lock()
        self.newest = 0
        self.plain = lru_cache(maxsize=32)(self._plain)

    def draw(self, caption: str, guidance_scale: float, steps: float, seed: float, *values: Any) -> list[Any]:
        """The pictures without and with guidance, and what is to be said; nothing when this is no longer the newest."""
        self.newest += 1
        number = self.newest
        with self.lock:
            if number != self.newest:
                return [gr.update(), gr.update(), gr.update()]
            asked = (caption, float(guidance_scale), int(steps), int(seed))
            try:
                settings = AsagSettings.from_mapping(dict(zip(ui.names(), values, strict=True)))
                return [self.plain(*asked), self._guided(settings, *asked), ""]
            except (SettingsError, ValueError) as error:
                return [gr.update(), gr.update(), as_html(str(error))]

    def _plain(self, *asked: Any) -> Image.Image:
        return self._sample(*asked)

    def _guided(self, settings: AsagSettings, *asked: Any) -> Image.Image:
        if not settings.active:
            return self.plain(*asked)
        chosen = {name: getattr(settings, name) for name in ui.names() if not name.startswith("hires")}
        with asag_guidance(self.pipeline, **chosen):
            return self._sample(*asked)

    def _sample(self, caption: str, guidance_scale: float, steps: int, seed: int) -> Image.Image:
        labels = drawings.parse_caption(caption).expand(PICTURES, -1, -1)
        images = shipped.sample(self.pipeline, labels, guidance_scale=guidance_scale, steps=steps, seed=seed)
        pictures = shipped.to_pil(images, ENLARGED)
        side = pictures[0].width
        sheet = Image.new("RGB", (2 * side + 4, 2 * side + 4), "white")
        for number, picture in enumerate(pictures):
            sheet.paste(picture, (number % 2 * (side + 4), number // 2 * (side + 4)))
        return sheet


def page(studio: Studio, presets: Presets, first_steps: int) -> gr.Blocks:
    with gr.Blocks(title="ASAG playground", css=STYLE.read_text(), analytics_enabled=False) as demo:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                caption = gr.Textbox(
                    "red disc, blue square",
                    label="Caption",
                    info=f"One or two of: {', '.join(drawings.COLOURS)}; {', '.join(drawings.SHAPES)}.",
                    elem_id="caption",
                )
                with gr.Row():
                    cfg = gr.Slider(1, 10, 2, step=0.1, label="CFG scale", elem_id="cfg")
                    steps = gr.Slider(2, 50, first_steps, step=1, label="Steps", elem_id="steps")
                    seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
                accordion = ui.build(lambda name: f"asag_{name}", input_accordion, presets)
            with gr.Column():
                with gr.Row():
                    plain = gr.Image(label="Without ASAG", elem_id="plain", interactive=False)
                    guided = gr.Image(label="With ASAG", elem_id="guided", interactive=False)
                told = gr.HTML("", elem_id="told")
        given = [caption, cfg, steps, seed, *accordion.settings.values()]
        outputs = [plain, guided, told]
        for component in given:
            component.change(studio.draw, given, outputs, show_progress="hidden")
        demo.load(studio.draw, given, outputs)
        demo.load(None, **{_script_argument(): f"() => {{{SCRIPT.read_text()}}}"})
    return demo


def _script_argument() -> str:
    """What gradio calls an event's JavaScript: `_js` in 3, `js` from 4 on."""
    return "js" if "js" in inspect.signature(gr.Blocks.load).parameters else "_js"


def application(folder: Path, first_steps: int) -> FastAPI:
    """The page, which begins with so many sampling steps, and the route that the block map asks. Presets are kept in
    `folder`."""
    studio = Studio()
    app = FastAPI()
    unet = studio.pipeline.unet

    @app.get("/asag/blocks")
    def blocks(blocks: str = "auto", toggle: str = "") -> dict[str, Any]:
        return block_map.inventory(unet, family_of(unet, FAMILIES), blocks, toggle)

    demo = page(studio, Presets(folder / "asag-presets.json"), first_steps)
    return gr.mount_gradio_app(app, demo.queue(), path="/")


def main(argv: list[str] | None = None) -> int:
    args = arguments.playground(argv)
    torch.set_num_threads(args.threads)
    app = application(args.presets, args.steps)
    print(f"ASAG playground: http://127.0.0.1:{args.port}", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning", timeout_graceful_shutdown=1)
    return 0
