"""Forge, reForge and Forge Neo: one guided generation, driven by the sampler's post-CFG function.

Sources: backend/sampling/sampling_function.py (Forge, Neo), ldm_patched/modules/samplers.py (reForge),
modules/sd_samplers_cfg_denoiser.py. In a step the `cfg_denoiser` callback comes first, then the model runs on all
conditionings, in one call or several, then come the post-CFG functions, and then the blend of an inpainting's mask.
What a post-CFG function raises ends the request.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from modules import script_callbacks
from torch import Tensor, nn

from asag.guidance import cfg_push, keep_contrast, rescale_factor
from asag.hosts.forge_rows import weight
from asag.hosts.forge_step import ForgeStep, Predict, SeenStep, Skipped
from asag.hosts.generation import GuidedRun, run_of
from asag.hosts.kept_state import KeptState
from asag.hosts.loaded import checkpoints, loaded_model
from asag.hosts.other_code import is_stateless, name_of, not_the_hosts
from asag.hosts.refused import Refused
from asag.hosts.run_notes import WITHOUT_BLOCKS, WITHOUT_MODEL
from asag.models.base import AttentionLayer, Family, UnsupportedModel, family_of, has_class
from asag.models.forge_flux import ForgeFlux
from asag.models.forge_sd3 import ForgeSd3
from asag.models.forge_unet import ForgeUnet
from asag.models.neo_image_alone import NeoAnima, NeoWan
from asag.models.neo_lumina import NeoLumina
from asag.models.neo_qwen import NeoQwen
from asag.models.neo_qwen21 import NeoQwen21
from asag.models.neo_single_stream import NeoErnie, NeoKrea
from asag.noise import NoiseSchedule
from asag.perturb import choose_layers
from asag.settings import AsagSettings

FAMILIES: Sequence[Family] = (
    ForgeUnet(),
    ForgeFlux(),
    ForgeSd3(),
    NeoLumina(),
    NeoQwen(),
    NeoQwen21(),
    NeoKrea(),
    NeoErnie(),
    NeoAnima(),
    NeoWan(),
)

# In the model options: a function that the host calls in place of its model, with the model as an argument.
WRAPPER = "model_function_wrapper"


class ForgeRun(GuidedRun):
    """Guides by a post-CFG function on a clone of the model patcher that samples: it adds s δ to the result."""

    def __init__(self, settings: AsagSettings) -> None:
        super().__init__(settings)
        self.patched: list[tuple[Any, Any, Any]] = []
        self.noise_of: tuple[Any, NoiseSchedule] | None = None
        self.chosen: tuple[nn.Module, str, list[AttentionLayer]] | None = None

        def after_cfg(args: dict[str, Any]) -> Tensor:
            return self.on_after_cfg(args)

        def after_own_pass(args: dict[str, Any]) -> Tensor:
            with self.errors_kept():
                if self._is_of_step(args):
                    self.step.remove()
                    # Now, before others change the host's result.
                    self.step.cfg = self._cfg_push(args, self.step)
            denoised: Tensor = args["denoised"]
            return denoised

        # Functions and not methods: Forge's clone() deep-copies what is in the model options, a method's run too. The
        # first comes before those of others, which make passes of their own.
        self.after_own_pass, self.after_cfg = after_own_pass, after_cfg

    def open_step(self, params: Any, scale: float, blocks: str) -> SeenStep:
        objects = _objects(params.denoiser)
        refuse_compiled(objects.unet.model)
        network, cfg_scale = objects.unet.model.diffusion_model, _cfg_scale(params.denoiser.p)
        # A refiner may put its weights into the same network (Neo: Reload "state_dict" Only).
        refiner = params.denoiser.p.extra_generation_params.get("Refiner")
        if self.kept.reuses(network, params.x.shape, refiner):
            self._patch(objects)
            return SeenStep(network, params.x, scale, cfg_scale)
        family = family_of(network, FAMILIES)
        if self.chosen is None or self.chosen[:2] != (network, blocks):
            self.chosen = network, blocks, choose_layers(network, family, blocks, self.heads)
        self._patch(objects)
        if objects.unet.model_options.get("conditioning_modifiers"):
            self.reuse.give_up("one of ControlNet's reference units is on")
        return ForgeStep(network, params.x, scale, self.chosen[2], family, self.operator, self.reuse, cfg_scale)

    def entrance(self, denoiser: Any) -> nn.Module:
        network: nn.Module = _objects(denoiser).unet.model.diffusion_model
        return network

    def noise(self, params: Any) -> tuple[NoiseSchedule, float]:
        # Forge and Neo: backend/modules/k_prediction.py; reForge: ldm_patched/modules/model_sampling.py.
        model = _objects(params.denoiser).unet.model
        source = getattr(model, "predictor", None) or model.model_sampling
        if self.noise_of is None or self.noise_of[0] is not source:
            is_flow = getattr(source, "prediction_type", "") == "const" or has_class(source, "CONST")
            self.noise_of = source, NoiseSchedule() if is_flow else NoiseSchedule(tuple(source.sigmas.tolist()))
        schedule = self.noise_of[1]
        return schedule, schedule.share(float(params.sigma[0]))

    def _patch(self, objects: Any) -> None:
        """Put the post-CFG function on what samples now; a refiner and the hires pass bring other objects."""
        if self.after_cfg in objects.unet.model_options.get("sampler_post_cfg_function", []):
            return
        before, ours = objects.unet, objects.unet.clone()
        functions = ours.model_options.get("sampler_post_cfg_function", [])
        # What guides comes last, but before what puts a protected area back.
        place = next((i for i, each in enumerate(functions) if _protects(each)), len(functions))
        guiding = [self.after_own_pass, *functions[:place], self.after_cfg, *functions[place:]]
        ours.model_options = {**ours.model_options, "sampler_post_cfg_function": guiding}
        self.patched.append((objects, before, ours))
        objects.unet = ours

    def end(self) -> None:
        super().end()
        patched, self.patched = self.patched, []
        for objects, before, ours in reversed(patched):
            if objects.unet is ours:
                objects.unet = before

    def on_after_cfg(self, args: dict[str, Any]) -> Tensor:
        """The step's result, (images, channels, …), with s δ added. Outside the window what it was given."""
        denoised: Tensor = args["denoised"]
        with self.errors_kept():
            if not self._is_of_step(args):
                return denoised
            step, self.step = self.step, None
            step.remove()
            if not step.ran:
                self.leave_out(WITHOUT_MODEL.format(_wrapper_name(args["model_options"])))
                return denoised
            try:
                guided = self._guided(args, step)
            except Skipped:
                self.leave_out(WITHOUT_BLOCKS.format(_wrapper_name(args["model_options"])))
                return denoised
            self.guided_calls += 1
            self.reused_calls += self.kept.reused
            return guided

    def _is_of_step(self, args: dict[str, Any]) -> bool:
        return self.step is not None and self.step.is_of(args["input"], args["model_options"])

    def _guided(self, args: dict[str, Any], step: SeenStep) -> Tensor:
        sigma = args["sigma"].reshape(-1, *[1] * (args["cond_denoised"].ndim - 1))
        delta = self._delta(args, step, sigma)
        delta = keep_contrast(delta, args["cond_denoised"], self.settings.contrast)
        # The function that comes first may have been taken out.
        cfg = self._cfg_push(args, step) if step.cfg is None else step.cfg
        shift = self.finite(delta * self.scale_of(step.scale, delta, sigma, cfg))
        guided: Tensor = args["denoised"] + shift
        unconditional = args.get("uncond_denoised")
        # CFG++ samplers renoise with the unconditional prediction, and what guides both rows shifts it as well. It is
        # all zeros where there was none.
        if isinstance(unconditional, Tensor):
            # A factor of 0 or 1, and no `if`, for which the host would wait for the device.
            unconditional += shift.to(unconditional.dtype) * unconditional.any()
        if self.settings.rescale:
            guided = guided * rescale_factor(args["cond_denoised"], guided, self.settings.rescale)
        return guided

    def _delta(self, args: dict[str, Any], step: SeenStep, sigma: Tensor) -> Tensor:
        """δ of each image, (images, …): this step's, or the last one's."""
        if not isinstance(step, ForgeStep):
            return self.kept.again(sigma)
        perturbed = step.predict(_pass_for(args, step), args["cond"])
        delta = args["cond_denoised"] - perturbed
        self.rounding.add(delta, args["input"] - args["cond_denoised"], step.calls[-1].x.dtype)
        return self.kept.keep(delta * weight(args["cond"]), sigma)

    def _cfg_push(self, args: dict[str, Any], step: SeenStep) -> Tensor | None:
        """CFG's own push, (images, channels, …); None without CFG in this step, or if it isn't needed."""
        # Not what the request says, where the host says more: Neo's refiner may have a scale of its own.
        step.cfg_scale = args.get("cond_scale", step.cfg_scale)
        if not self.scaling.needs_cfg or not step.has_cfg:
            return None
        unconditional: Tensor = args["uncond_denoised"]
        deviation = (args["cond_denoised"] - unconditional) * weight(args["cond"])
        return cfg_push(args["denoised"], unconditional, deviation)


class Forge:
    """The host, for the script. Registers the callback that the host calls in every step of every generation."""

    families = FAMILIES

    def __init__(self) -> None:
        script_callbacks.on_cfg_denoiser(self._cfg_denoiser)

    def run(self, settings: AsagSettings) -> ForgeRun:
        return ForgeRun(settings)

    def model(self) -> tuple[nn.Module, Family]:
        objects = getattr(loaded_model(), "forge_objects", None)
        if objects is None:
            raise Refused("ASAG: no model is loaded yet", 422)
        refuse_compiled(objects.unet.model)
        network = objects.unet.model.diffusion_model
        try:
            return network, family_of(network, FAMILIES)
        except UnsupportedModel as error:
            raise Refused(f"ASAG settings: {error}", 422) from error

    def checkpoints(self, wanted: str | None = None) -> tuple[Any, Any]:
        return checkpoints(wanted)

    def _cfg_denoiser(self, params: Any) -> None:
        run = run_of(params.denoiser)
        if run is not None:
            run.on_cfg_denoiser(params)


def refuse_compiled(model: Any) -> None:
    """Raise Refused for a model that Neo's Torch Compile has compiled (extensions-builtin/sd_forge_compile): what is
    compiled doesn't see that attention is replaced."""
    if getattr(model, "_torch_compile_config", None) is not None or hasattr(model.diffusion_model, "_orig_mod"):
        raise Refused("ASAG can't guide a compiled model: set Torch Compile to Disable", 422)


def _cfg_scale(p: Any) -> float:
    """CFG's scale in the pass that runs (modules/sd_samplers_cfg_denoiser.py: forward)."""
    in_hires = getattr(p, "is_hr_pass", False) and hasattr(p, "hr_cfg")
    return float(p.hr_cfg if in_hires else p.cfg_scale)


def _objects(denoiser: Any) -> Any:
    """The model patchers that the host's sampling_function uses."""
    return denoiser.inner_model.inner_model.forge_objects


def _protects(function: Callable[..., Tensor]) -> bool:
    """Whether a post-CFG function is inpaint_only's, which blends with the picture outside of the mask
    (extensions-builtin/forge_preprocessor_inpaint)."""
    return getattr(function, "__module__", "").startswith("preprocessor_inpaint")


def _pass_for(args: dict[str, Any], step: ForgeStep) -> Predict:
    """The host's own pass, for the step: without a function of others around the model that may remember what it sees.

    Neo's Spectrum (extensions-builtin/sd_forge_spectrum) keeps a history of predictions; a weakened one must not get
    into it. Where the pass comes out otherwise without such a function it is needed: then it is as before afterwards.
    """
    options = args["model_options"]
    wrapper = options.get(WRAPPER)
    step.has_wrapper = wrapper is not None
    through = _host_pass(args, step.x)
    if wrapper is None or is_stateless(wrapper) or not not_the_hosts([wrapper]):
        return through
    bare_options = {name: value for name, value in options.items() if name != WRAPPER}
    bare = _host_pass({**args, "model_options": bare_options}, step.x)
    if step.repeats(bare, args["cond"], args["cond_denoised"]):
        return bare
    memory = KeptState([wrapper])

    def predict(conds: list[dict[str, Any]]) -> Tensor:
        with memory.again():
            return through(conds)

    return predict


def _wrapper_name(options: dict[str, Any]) -> str:
    wrapper = options.get(WRAPPER)
    return "another extension" if wrapper is None else name_of(wrapper)


def _host_pass(args: dict[str, Any], step_x: Tensor) -> Predict:
    """The host's own pass on conditionings alone, in the step whose post-CFG arguments these are, and which got
    `step_x` from the sampler."""
    # reForge has no backend package.
    home: Any = sys.modules.get("backend.sampling.sampling_function") or sys.modules["ldm_patched.modules.samplers"]
    x = args["input"]
    if home.__name__.startswith("ldm_patched") and not args["model_options"].get("conditioning_modifiers"):
        # There pre-CFG functions run after the model, and inpaint_only leaves another input for those that follow.
        x = step_x

    def predict(conds: list[dict[str, Any]]) -> Tensor:
        rest = (x, args["sigma"], args["model_options"])
        # Neo makes long videos in windows of frames.
        windows = getattr(getattr(home, "dynamic_args", None), "context_handler", None)
        if windows is not None and windows.should_use_context(x):
            predictions = windows.execute(home.calc_cond_uncond_batch, args["model"], [conds, None], *rest)
        else:
            predictions = home.calc_cond_uncond_batch(args["model"], conds, None, *rest)
        conditional: Tensor = predictions[0]
        return conditional

    return predict
