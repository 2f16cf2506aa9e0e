"""ASAG's entry point in a WebUI: registers and delegates, no logic."""

from modules import script_callbacks, scripts

from asag.hosts import a1111, a1111_model
from asag.webui import api, infotext, ui, xyz


class AsagScript(scripts.Script):
    def title(self):
        return "ASAG"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        components = ui.build(self.elem_id)
        self.infotext_fields = [
            (component, lambda parameters, name=name: infotext.pasted_value(parameters, name))
            for name, component in components.items()
        ]
        return list(components.values())

    def process_batch(self, p, *args, **kwargs):
        a1111.disarm(p)
        p.extra_generation_params.pop(infotext.KEY, None)
        try:
            settings = api.read_args(args, xyz.overrides(p))
            if settings.active:
                # Already now, for what the host writes before and during sampling; taken back if nothing was guided.
                p.extra_generation_params[infotext.KEY] = infotext.write(settings)
                a1111.arm(p, settings, unguided=lambda: p.extra_generation_params.pop(infotext.KEY, None))
        except Exception as error:
            # The host would log it and go on unguided.
            a1111.refuse(p, error)


def add_axes(*_):
    for script in scripts.scripts_data:
        if script.script_class.__module__ == "xyz_grid.py":
            xyz.add_axes(script.module)


def add_routes(_, app):
    app.add_api_route("/asag/schema", api.schema, methods=["GET"])
    app.add_api_route("/asag/blocks", lambda: api.inventory(a1111_model.unet(), a1111_model.FAMILY), methods=["GET"])


callbacks = a1111.Callbacks()
script_callbacks.on_cfg_denoiser(callbacks.cfg_denoiser)
script_callbacks.on_cfg_denoised(callbacks.cfg_denoised)
script_callbacks.on_before_ui(add_axes)
# Without a user interface the host never calls on_before_ui.
script_callbacks.on_app_started(add_axes)
script_callbacks.on_app_started(add_routes)
