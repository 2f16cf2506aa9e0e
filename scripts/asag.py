"""ASAG's entry point in a WebUI: registers and delegates, no logic."""

from modules import script_callbacks, scripts

from asag.hosts import a1111
from asag.settings import SettingsError
from asag.webui import api, infotext, ui


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

    def process(self, p, *args):
        a1111.disarm(p)
        p.extra_generation_params.pop(infotext.KEY, None)
        try:
            settings = api.read_args(args)
        except SettingsError as error:
            a1111.refuse(p, error)
            return
        if settings.active:
            note = {infotext.KEY: infotext.write(settings)}
            a1111.arm(p, settings, finished=lambda: p.extra_generation_params.update(note))

    def postprocess(self, p, processed, *args):
        a1111.disarm(p)


callbacks = a1111.Callbacks()
script_callbacks.on_cfg_denoiser(callbacks.cfg_denoiser)
script_callbacks.on_cfg_denoised(callbacks.cfg_denoised)
