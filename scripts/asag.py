"""ASAG's entry point in a WebUI: registers and delegates, no logic."""

from pathlib import Path

from modules import script_callbacks, scripts
from modules.paths_internal import data_path
from modules.ui_components import InputAccordion

from asag.hosts import webui
from asag.webui import copies

webui.log_warnings()
first = copies.first_copy(__file__)
# Beside an older copy that was loaded first, this is its package, which may lack what is newer.
if first is None:
    from asag.hosts import before_loading, generation, notes, shown
    from asag.presets import Presets
    from asag.webui import api, distributed, earlier_labels, gallery_figures, infotext, routes, ui, xyz
    from asag.webui.paste import PasteFields

    host = webui.find_host()
    blocks_route = routes.secret_route() if webui.asks_for_password() else routes.BLOCKS
    presets = Presets(Path(data_path) / "asag-presets.json")
    paste_fields = PasteFields(presets)


class AsagScript(scripts.Script):
    def title(self):
        return api.TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        start = earlier_labels.start_values(webui.ui_config(), is_img2img)
        accordion = ui.build(
            self.elem_id, InputAccordion, presets, blocks_route, start, model=lambda: shown.model_to_run(host)
        )
        self.infotext_fields = paste_fields.fields(accordion)
        self.paste_field_names = paste_fields.sent()
        return list(accordion.settings.values())

    def before_process(self, p, *args):
        before_loading.check(host, p, lambda: api.read_args(args))

    def process_batch(self, p, *args, **kwargs):
        try:
            generation.disarm(p)
            p.extra_generation_params.pop(infotext.KEY, None)
            notes.forget(p)
            settings = gallery_figures.allowed(p, api.read_args(args))
            if settings.active:
                # Already now, for what the host writes before and during sampling; taken back if nothing was guided.
                p.extra_generation_params[infotext.KEY] = infotext.write(settings)
                trace = generation.arm(
                    host, p, settings, unguided=lambda: p.extra_generation_params.pop(infotext.KEY, None)
                )
                gallery_figures.keep_trace(p, trace)
                notes.note_unguided_inpainting(p)
            elif settings.enabled and settings.no_effect:
                notes.note(p, f"ASAG guided no step of this image: {settings.no_effect}")
        except Exception as error:
            # The host would log it and go on unguided.
            generation.refuse(p, error)

    def postprocess_image(self, p, pp, *args):
        distributed.check_picture(p, args)
        gallery_figures.keep_picture(p, pp.image)

    def postprocess(self, p, processed, *args):
        distributed.check_rest(p, processed, args)
        gallery_figures.append(p, processed)


def add_axes(*_):
    for script in scripts.scripts_data:
        if script.script_class.__module__ == "xyz_grid.py":
            xyz.add_axes(script.module)


def add_routes(_, app):
    routes.add_routes(app, host, blocks_route)


if first is None:
    script_callbacks.on_infotext_pasted(infotext.on_infotext_pasted)
    script_callbacks.on_before_ui(add_axes)
    # Without a user interface the host never calls on_before_ui.
    script_callbacks.on_app_started(add_axes)
    script_callbacks.on_app_started(add_routes)
else:
    # The host takes every script class that it finds here.
    AsagScript = copies.second_copy(first, __file__)
