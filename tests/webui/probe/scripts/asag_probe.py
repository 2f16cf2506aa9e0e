"""Looks into a running WebUI for the tests, and breaks it for them. No extension for users.

GET /asag-probe: an answer means that the WebUI has started.
POST /asag-probe/softmax: from now on guided requests have ordinary SoftMax attention as their operator.
GET /asag-probe/delta: ends that; tells for every step since the largest |δ|, relative to the root mean square of the
prediction (what isn't 0 is an artefact), and how often the operator ran.
GET /asag-probe/reuse: how many guided steps of the last guided generation shared work with the host's own pass, how
many took a whole extra pass, and why.
GET /asag-probe/fingerprint: for every module of the loaded model, what is set on that instance beyond its class: two
equal answers mean that nothing was left patched in between.
POST /asag-probe/fail?where=unet|perturbed&call=n&kind=…: the n-th forward pass of the UNet from now on, or the n-th
perturbed one, raises an exception of that kind near its end, once.
POST /asag-probe/uncover: takes away the `_forward` that ControlNet puts on every block for good once it has run a
reference unit (scripts/controlnet.py: clear_all_secondary_control_models): it hides Token Merging's, a changed class's.
"""

import importlib
import importlib.util
import itertools
import sys

import torch
import torch.nn.functional as F
from modules import script_callbacks, shared
from torch import nn

from asag.operators import Operator
from asag.settings import AsagSettings

# What a host's module notes on itself: the decoder of ldm remembers the shape it last decoded.
HOSTS_OWN = {"last_z_shape"}
FAILURES = {kind.__name__: kind for kind in (RuntimeError, MemoryError, torch.cuda.OutOfMemoryError)}


def roots():
    """The model as the host holds it, by name: one tree, and in Forge's family the UNet that patches are put on."""
    model = shared.sd_model
    found = {"model": model} if isinstance(model, nn.Module) else {}
    forge = getattr(model, "forge_objects", None)
    if forge is not None:
        found["unet"] = forge.unet.model
    return found


def diffusion_model():
    forge = getattr(shared.sd_model, "forge_objects", None)
    return (shared.sd_model if forge is None else forge.unet).model.diffusion_model


def describe_function(function):
    function = getattr(function, "__func__", function)
    module = getattr(function, "__module__", type(function).__module__)
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def describe_module(module):
    """One line: class, its forward, the instance's forward if it has one, hooks, and the names on the instance."""
    own, names = module.__dict__.get("forward"), module.__dict__.keys() - HOSTS_OWN
    if getattr(own, "__func__", None) is type(module).forward:
        # The class's own, bound: ControlNet's IP-Adapter leaves it there, and NegPiP takes it away.
        own, names = None, names - {"forward"}
    return "; ".join(
        [
            f"{type(module).__module__}.{type(module).__qualname__}",
            f"forward {describe_function(type(module).forward)}",
            f"own forward {describe_function(own) if own is not None else None}",
            f"hooks {len(module._forward_pre_hooks)} before, {len(module._forward_hooks)} after",
            f"names {sorted(names)}",
        ]
    )


def fingerprint():
    state = {
        f"{root}.{name}": describe_module(module)
        for root, tree in roots().items()
        for name, module in tree.named_modules()
    }
    forge = getattr(shared.sd_model, "forge_objects", None)
    if forge is not None:
        # Other extensions' patches stay until the next generation: the host puts a fresh patcher there first.
        functions = [describe_function(each) for each in callables_in(forge.unet.model_options)]
        state["unet patcher"] = str([each for each in functions if each.startswith("asag")])
    return state


def callables_in(given):
    """The functions in nested dicts and lists: Forge's patches."""
    if isinstance(given, dict):
        given = list(given.values())
    if isinstance(given, (list, tuple)):
        return [function for each in given for function in callables_in(each)]
    return [given] if callable(given) else []


def in_perturbed_pass():
    """Whether the extension, rather than the host's denoiser, called the model: whoever is nearer on the stack.

    What shares the host's own pass lies on the stack of that pass too, and isn't counted.
    """
    frame = sys._getframe(1)
    while frame is not None:
        function = frame.f_code.co_name
        is_asags = frame.f_globals.get("__name__", "").startswith("asag.")
        if is_asags and function in ("whole", "_guided", "on_cfg_denoised"):
            return True
        if frame.f_globals.get("__name__") == "modules.sd_samplers_cfg_denoiser":
            return False
        frame = frame.f_back
    return False


def fail_once(where, call, kind):
    # Not a number: ASAG puts back what others' hooks remember around its own pass.
    calls = itertools.count(1)

    def before_last_part(module, args):
        if where == "perturbed" and not in_perturbed_pass():
            return
        if next(calls) == call:
            hook.remove()
            raise FAILURES[kind](f"asag_probe: the failure that was asked for ({where}, call {call})")

    # This hook only fails: it is known to keep nothing, so that ASAG tries a branch beside it.
    other_code = importlib.import_module("asag.hosts.other_code")
    other_code.STATELESS_CODE = (*other_code.STATELESS_CODE, (__name__, "fail_once."))
    hook = list(diffusion_model().children())[-1].register_forward_pre_hook(before_last_part)


class LastReuse:
    """Keeps the prefix reuse of the last generation."""

    def __init__(self):
        self.last = None
        reuse = importlib.import_module("asag.hosts.reuse").Reuse
        before = reuse.__init__

        def remembered(made, wanted):
            before(made, wanted)
            self.last = made

        reuse.__init__ = remembered

    def told(self):
        return {"shared": self.last.shared, "whole": self.last.whole, "why": self.last.first_reason}


class Softmax(Operator):
    """What the host computes: with it in the operator's place nothing is perturbed."""

    calls = 0

    def plain(self, query, key, value, grid=None):
        self.calls += 1
        return F.scaled_dot_product_attention(query, key, value)


class SoftmaxGuidance:
    """SoftMax as every run's operator, and the size of δ in every step, at scale 1.

    In Forge's family δ is what the post-CFG function adds, in AUTOMATIC1111 what is added to the combined rows.
    """

    def __init__(self):
        if importlib.util.find_spec("modules_forge"):
            self.run, self.name = importlib.import_module("asag.hosts.forge").ForgeRun, "on_after_cfg"
            measured = self.added
        else:
            self.run, self.name = importlib.import_module("asag.hosts.a1111").A1111Run, "_guided"
            measured = self.combined
        self.before = AsagSettings.operator, getattr(self.run, self.name)
        self.operator, self.sizes = Softmax(), []
        AsagSettings.operator = lambda settings: self.operator
        setattr(self.run, self.name, lambda run, *args: measured(run, *args))

    def added(self, run, args):
        guided = self.before[1](run, args)
        self.note(guided - args["denoised"], args["cond_denoised"])
        return guided

    def combined(self, run, result, rows, *args):
        prediction = rows.clone()
        guided = self.before[1](run, result, rows, *args)
        self.note(guided - result, prediction)
        return guided

    def note(self, delta, prediction):
        self.sizes.append(float(delta.abs().max() / prediction.float().square().mean().sqrt()))

    def end(self):
        AsagSettings.operator = self.before[0]
        setattr(self.run, self.name, self.before[1])
        return {"delta": self.sizes, "calls": self.operator.calls}


def add_routes(_, app):
    app.get("/asag-probe")(lambda: {})
    app.get("/asag-probe/fingerprint")(fingerprint)
    app.get("/asag-probe/reuse")(LastReuse().told)

    @app.post("/asag-probe/fail")
    def fail(where: str, call: int = 1, kind: str = "RuntimeError"):
        if where not in ("unet", "perturbed") or call < 1 or kind not in FAILURES:
            return {"error": f"{where}, {call}, {kind}; allowed: unet or perturbed, from 1 on, one of {list(FAILURES)}"}
        fail_once(where, call, kind)
        return {"armed": where}

    guidances = []

    @app.post("/asag-probe/softmax")
    def softmax():
        guidances.append(SoftmaxGuidance())
        return {}

    app.get("/asag-probe/delta")(lambda: guidances.pop().end())

    @app.post("/asag-probe/uncover")
    def uncover():
        for module in diffusion_model().modules():
            for name in ("_forward", "_original_inner_forward_cn_hijack"):
                module.__dict__.pop(name, None)
        return {}


script_callbacks.on_app_started(add_routes)
