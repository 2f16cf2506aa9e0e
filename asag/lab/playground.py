"""`python -m asag playground`: the WebUI's accordion and block map in a page of their own, on the embedded models.

For trying without a WebUI, and for tests in a browser. Runs in gradio 3.41, 4.40 and 6.31.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import torch
import uvicorn
from diffusers import DiffusionPipeline
from fastapi import FastAPI, HTTPException
from PIL import Image

from asag.echo import shown
from asag.hosts.diffusers_models import FAMILIES, denoiser_of
from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab import arguments, demo
from asag.lab.embedded import drawings, shipped, shipped_mmdit
from asag.lab.gradio_versions import script_argument, style_argument
from asag.models.base import family_of, head_count
from asag.presets import CUSTOM, Presets
from asag.settings import AsagSettings, SettingsError
from asag.webui import block_map, ui
from asag.webui.plain import as_html

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = sorted((ROOT / "javascript").glob("*.js"))
STYLE = ROOT / "style.css"
PICTURES = 4  # of one caption, side by side, for one alone says little
ENLARGED = 5
# A hires pass is a pipeline call of its own in diffusers; a figure would need a place of its own here.
LEFT_OUT = ("hires", "hires_scale", "hires_blocks", "figures")
INTRODUCTION = """# ASAG playground
A small model draws the same four pictures without ASAG and with it. Change anything: both follow."""


@dataclass(frozen=True)
class Model:
    """A model that comes with ASAG: how its pipeline is loaded, the folder of its captions, and what a page that shows
    it starts with."""

    load: Callable[[], DiffusionPipeline]
    folder: Path
    guidance_scale: float
    settings: Mapping[str, Any]


def _mmdit() -> DiffusionPipeline:
    pipeline = shipped_mmdit.load_pipeline()
    pipeline.scheduler = shipped_mmdit.solver_of(pipeline.scheduler)
    return pipeline


def _unet() -> DiffusionPipeline:
    pipeline = shipped.load_pipeline()
    pipeline.scheduler = shipped.solver_of(pipeline.scheduler)
    return pipeline


MODELS = {
    "MMDiT": Model(_mmdit, shipped_mmdit.MODEL, 1.0, demo.METHODS["ASAG"]),
    "UNet": Model(_unet, shipped.MODEL, 2.0, {}),
}
FIRST = "MMDiT"


@contextmanager
def input_accordion(value: bool, label: str, elem_id: str) -> Iterator[Any]:
    """Stands in for the WebUIs' InputAccordion (modules/ui_components.py): its checkbox beside an open accordion."""
    box = gr.Checkbox(True, label=label, elem_id=f"{elem_id}-checkbox")
    with gr.Accordion("Settings", open=True, elem_id=elem_id):
        yield box


class Studio:
    """Draws. One drawing at a time; of those that wait, only the newest is made."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.newest = 0
        self.pipeline = lru_cache(maxsize=None)(lambda model: MODELS[model].load())
        self.plain = lru_cache(maxsize=32)(self._sample)
        # Choosing a model or a preset changes many fields, and each asks for the same pictures.
        self.guided = lru_cache(maxsize=32)(self._guided)

    def draw(
        self, model: str, caption: str, guidance_scale: float, steps: float, seed: float, *values: Any
    ) -> list[Any]:
        """The pictures without and with guidance, and what is to be said; nothing when this is no longer the newest."""
        self.newest += 1
        number = self.newest
        with self.lock:
            if number != self.newest:
                return [gr.update(), gr.update(), gr.update()]
            asked = (model, caption, float(guidance_scale), int(steps), int(seed))
            try:
                settings = AsagSettings.from_mapping(dict(zip(ui.names(), values, strict=True)))
                return [self.plain(*asked), self.guided(settings, *asked), ""]
            except (SettingsError, ValueError) as error:
                return [gr.update(), gr.update(), as_html(str(error))]

    def blocks(self, model: str, blocks: str, toggle: str) -> dict[str, Any]:
        """What the block map asks of a model, as block_map.inventory has it."""
        denoiser = denoiser_of(self.pipeline(model))
        family = family_of(denoiser, FAMILIES)
        heads = {layer.address: head_count(layer.module) for layer in family.layers(denoiser)}
        known = {address: count for address, count in heads.items() if count}
        return block_map.inventory(family, list(heads), blocks, toggle, known)

    def _guided(self, settings: AsagSettings, model: str, *asked: Any) -> Image.Image:
        if not settings.active:
            return self.plain(model, *asked)
        chosen = {name: getattr(settings, name) for name in ui.names() if name not in LEFT_OUT}
        with asag_guidance(self.pipeline(model), **chosen):
            return self._sample(model, *asked)

    def _sample(self, model: str, caption: str, guidance_scale: float, steps: int, seed: int) -> Image.Image:
        labels = drawings.parse_caption(caption).expand(PICTURES, -1, -1)
        drawn = shipped.sample(
            self.pipeline(model),
            labels,
            guidance_scale=guidance_scale,
            steps=steps,
            seed=seed,
            folder=MODELS[model].folder,
        )
        pictures = shipped.to_pil(drawn, ENLARGED)
        side = pictures[0].width
        sheet = Image.new("RGB", (2 * side + 4, 2 * side + 4), "white")
        for number, picture in enumerate(pictures):
            sheet.paste(picture, (number % 2 * (side + 4), number // 2 * (side + 4)))
        return sheet


def page(studio: Studio, presets: Presets, first_steps: int) -> gr.Blocks:
    with gr.Blocks(title="ASAG playground", analytics_enabled=False, **_styles(of_page=True)) as demo:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                model, given = _what_is_drawn(first_steps)
                accordion = ui.build(
                    _elem_id, input_accordion, presets, route_of(FIRST), MODELS[FIRST].settings, LEFT_OUT
                )
                given += accordion.settings.values()
            with gr.Column():
                with gr.Row():
                    plain = gr.Image(label="Without ASAG", elem_id="plain", interactive=False)
                    guided = gr.Image(label="With ASAG", elem_id="guided", interactive=False)
                told = gr.HTML("", elem_id="told")
        outputs = [plain, guided, told]
        # Choosing a model sets others of these, and is drawn with them.
        for component in given[1:]:
            component.change(studio.draw, given, outputs, show_progress="hidden")
        cfg = given[2]
        model.input(
            start_of, [model], [cfg, accordion.map, accordion.preset, *accordion.settings.values()], queue=False
        )
        demo.load(studio.draw, given, outputs)
        for script in SCRIPTS:
            demo.load(None, **{script_argument(gr.Blocks.load): f"() => {{{script.read_text()}}}"})
    return demo


def _elem_id(name: str) -> str:
    return f"asag_{name}"


def _what_is_drawn(first_steps: int) -> tuple[Any, list[Any]]:
    """The choice of a model; and this with the other fields, in the order in which Studio.draw takes them."""
    model = gr.Radio(list(MODELS), value=FIRST, label="Model", elem_id="model")
    caption = gr.Textbox(
        "red triangle, yellow cross",
        label="Caption",
        info=f"One or two of: {', '.join(drawings.COLOURS)}; {', '.join(drawings.SHAPES)}.",
        elem_id="caption",
    )
    with gr.Row():
        cfg = gr.Slider(1, 10, MODELS[FIRST].guidance_scale, step=0.1, label="CFG scale", elem_id="cfg")
        steps = gr.Slider(2, 50, first_steps, step=1, label="Steps", elem_id="steps")
        seed = gr.Number(7, label="Seed", precision=0, elem_id="seed")
    return model, [model, caption, cfg, steps, seed]


def start_of(model: str) -> list[Any]:
    """What choosing a model sets: CFG scale, the block map, the list of presets, and the settings."""
    settings = AsagSettings.from_mapping({"enabled": True, **MODELS[model].settings})
    place = ui.map_place(_elem_id("blocks"), route_of(model))
    preset = gr.update(value=CUSTOM if MODELS[model].settings else "Paper")
    values = [getattr(settings, name) for name in ui.names()]
    return [MODELS[model].guidance_scale, place, preset, *values]


def route_of(model: str) -> str:
    return f"asag/{model}/blocks"


def _styles(of_page: bool) -> dict[str, str]:
    return style_argument(gr.mount_gradio_app, STYLE.read_text(), of_page)


def application(folder: Path, first_steps: int) -> FastAPI:
    """The page, which begins with so many sampling steps, and the routes that the block map asks. Presets are kept in
    `folder`."""
    studio = Studio()
    app = FastAPI()

    @app.get(f"/{route_of('{model}')}")
    def blocks(model: str, blocks: str = "auto", toggle: str = "") -> dict[str, Any]:
        if model not in MODELS:
            raise HTTPException(404, f"model: {shown(model)}; allowed: {', '.join(MODELS)}")
        return studio.blocks(model, blocks, toggle)

    demo = page(studio, Presets(folder / "asag-presets.json"), first_steps)
    return gr.mount_gradio_app(app, demo.queue(), path="/", **_styles(of_page=False))


def main(argv: list[str] | None = None) -> int:
    args = arguments.playground(argv)
    torch.set_num_threads(args.threads)
    app = application(args.presets, args.steps)
    print(f"ASAG playground: http://127.0.0.1:{args.port}", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning", timeout_graceful_shutdown=1)
    return 0
