"""Makes Forge and Forge Neo keep a part of a model's weights in graphics memory and move the rest for each call, as
with little of it; on a CPU too, where they else load everything. No extension for users.

POST /asag-probe/room?share=…: from the next image on models are loaded with room for that share of their weights
(0: none, as NO_VRAM does; 1: as usual). What is loaded is unloaded.
GET /asag-probe/room: how many modules of the denoiser have their weights moved for each call (`moved`), of how many
(`all`); and how many weights the host has moved since (`calls`).

What is loaded when, and what runs then, is the host's own code. On a CPU both places are one, and what the host would
move it copies.
"""

import inspect

from modules import script_callbacks, shared

try:
    from backend import memory_management, operations
except ImportError:
    memory_management = None  # A1111 and reForge


class Room:
    def __init__(self):
        self.share, self.calls = 1.0, 0
        loaded = memory_management.LoadedModel
        self.load = loaded.model_load
        self.is_neo = "lowvram_model_memory" in inspect.signature(self.load).parameters
        loaded.model_load = lambda model, *args, **kwargs: self.model_load(model, *args, **kwargs)
        if self.is_neo:
            cast = memory_management.cast_to
            memory_management.cast_to = lambda *args, **kwargs: cast(*args, **self.copied(kwargs))
        else:
            self.weights = operations.get_weight_and_bias
            operations.get_weight_and_bias = self.weight_and_bias

    def model_load(self, model, *args, **kwargs):
        if self.share == 1:
            return self.load(model, *args, **kwargs)
        if not self.is_neo:
            return self.load(model, int(self.share * memory_management.module_size(model.model.model)))
        # As load_models_gpu reckons: what is free, with what the model has already, less that.
        room = self.share * model.model_memory() - model.model_loaded_memory()
        return self.load(model, room if self.share and room else 0.1, **kwargs)

    def copied(self, kwargs):
        if self.share == 1:
            return kwargs
        self.calls += 1
        return {**kwargs, "copy": True}

    def weight_and_bias(self, layer, weight_args=None, *args, **kwargs):
        found = self.weights(layer, weight_args, *args, **kwargs)
        if self.share == 1 or weight_args is None:
            return found
        self.calls += 1
        # What bitsandbytes has quantised is another object already.
        return tuple(each if each is None or hasattr(each, "quant_state") else each.clone() for each in found)

    def put(self, share: float):
        memory_management.unload_all_models()
        self.share, self.calls = share, 0
        return {}

    def told(self):
        modules = list(shared.sd_model.forge_objects.unet.model.diffusion_model.modules())
        movable = [each for each in modules if hasattr(each, "parameters_manual_cast")]
        moved = [each for each in movable if hasattr(each, "prev_parameters_manual_cast")]
        return {"moved": len(moved), "all": len(movable), "calls": self.calls}


def add_routes(_, app):
    room = Room()
    app.post("/asag-probe/room")(room.put)
    app.get("/asag-probe/room")(room.told)


if memory_management is not None:
    script_callbacks.on_app_started(add_routes)
