"""Forge's adapter on a double of the host: what Forge, reForge and Neo do in a step, without their packages."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from asag.hosts.generation import RUN, Refused, arm, disarm
from asag.settings import AsagSettings
from tests.installed import installed
from tests.support import snapshot


class Block(nn.Module):
    """The double of a BasicTransformerBlock, with the host's own way to replace its self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = nn.Linear(4, 4)

    def forward(self, x, context=None, transformer_options=None):
        place = (*transformer_options["block"], 0)
        replaced = transformer_options.get("patches_replace", {}).get("attn1", {})
        tokens = x.flatten(2).transpose(1, 2)
        query = 3 * self.attn1(tokens)
        if place in replaced:
            out = replaced[place](query, query, tokens, {"n_heads": 2})
        else:
            heads = [tensor.unflatten(-1, (2, -1)).transpose(1, 2) for tensor in (query, query, tokens)]
            out = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])


class Unet(nn.Module):
    """The double of a UNet of one block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.input_blocks, self.output_blocks = nn.ModuleList(), nn.ModuleList()
        self.middle_block = nn.ModuleList([nn.Identity(), Block()])

    def forward(self, x, timestep, context=None, transformer_options=None):
        transformer_options["block"] = ("middle", 0)
        hidden = x + context.mean(dim=1)[..., None, None]
        return self.middle_block[1](hidden, context, transformer_options)


class Patcher:
    """The double of a UnetPatcher."""

    def __init__(self, model, options=None) -> None:
        self.model, self.model_options = model, options or {"transformer_options": {}}

    def clone(self):
        return Patcher(self.model, dict(self.model_options))

    def set_model_sampler_post_cfg_function(self, function):
        known = self.model_options.get("sampler_post_cfg_function", [])
        self.model_options["sampler_post_cfg_function"] = [*known, function]


def calc_cond_uncond_batch(model, cond, uncond, x, timestep, model_options):
    """The double of the host's pass: one call, uncond first, conditionings weighted by their strengths."""
    kinds = [(1, each) for each in uncond or []] + [(0, each) for each in cond]
    options = {**model_options["transformer_options"], "cond_or_uncond": [kind for kind, _ in kinds]}
    rows, times = torch.cat([x] * len(kinds)), torch.cat([timestep] * len(kinds))
    texts = torch.cat([each["text"].expand(x.shape[0], -1, -1) for _, each in kinds])
    chunks = model.diffusion_model(rows, times, context=texts, transformer_options=options).chunk(len(kinds))
    total = sum(each.get("strength", 1.0) for each in cond)
    parts = [each.get("strength", 1.0) * out for (kind, each), out in zip(kinds, chunks, strict=True) if kind == 0]
    return sum(parts) / total, chunks[0] if uncond else torch.zeros_like(x)


class Host:
    """The double of a host with one model loaded, and of a request that it samples."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(diffusion_model=Unet())
        self.unet = Patcher(self.model)
        self.objects = SimpleNamespace(unet=self.unet)
        self.callback = None
        sd_model = SimpleNamespace(forge_objects=self.objects)
        self.sd_models = SimpleNamespace(model_data=SimpleNamespace(sd_model=sd_model))
        self.comments: list[str] = []
        self.p = SimpleNamespace(scripts=None, comment=self.comments.append, is_hr_pass=False, sample=self.sample)
        self.p.cfg_scale = 7.0
        self.p.extra_generation_params = {}
        wrapped = SimpleNamespace(inner_model=sd_model)
        self.denoiser = SimpleNamespace(step=0, total_steps=4, p=self.p, inner_model=wrapped)
        self.x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
        self.conds = [{"text": torch.full((1, 3, 4), 0.3)}]
        self.unconds = [{"text": torch.full((1, 3, 4), -0.2)}]
        self.cfg, self.fails = 7.0, False
        self.sampler_replaces_functions, self.input_of_functions = False, None
        self.uncond_denoised: list[torch.Tensor] = []

    def sample(self):
        """The denoised results of all steps: each as modules/sd_samplers_cfg_denoiser.py and sampling_function go."""
        results = []
        for step in range(self.denoiser.total_steps):
            self.denoiser.step = step
            try:
                self.callback(SimpleNamespace(x=self.x, denoiser=self.denoiser))
            except Exception:
                self.fails = True  # the host logs what a callback raises, and goes on
            results.append(self.step())
        return torch.stack(results)

    def step(self):
        sigma = torch.full((2,), 2.0)
        options = dict(self.objects.unet.model_options)
        if self.sampler_replaces_functions:
            options["sampler_post_cfg_function"] = []
        cond, uncond = calc_cond_uncond_batch(self.model, self.conds, self.unconds, self.x, sigma, options)
        denoised = uncond + (cond - uncond) * self.cfg * sum(each.get("strength", 1.0) for each in self.conds)
        for function in options.get("sampler_post_cfg_function", []):
            given = {"denoised": denoised, "cond_denoised": cond, "cond": self.conds, "sigma": sigma}
            given["input"] = self.x if self.input_of_functions is None else self.input_of_functions
            given |= {"uncond_denoised": uncond, "model": self.model, "model_options": options}
            denoised = function(given)
        self.uncond_denoised.append(uncond)
        return denoised


@pytest.fixture
def host():
    host = Host()
    callbacks = ModuleType("modules.script_callbacks")
    callbacks.on_cfg_denoiser = lambda callback: setattr(host, "callback", callback)
    modules = ModuleType("modules")
    modules.script_callbacks, modules.sd_models = callbacks, host.sd_models
    sampling = ModuleType("backend.sampling.sampling_function")
    sampling.calc_cond_uncond_batch = calc_cond_uncond_batch
    with installed({module.__name__: module for module in (modules, callbacks, sampling)}):
        from asag.hosts.forge import Forge

        host.adapter = Forge()
        yield host


@torch.no_grad()
def guided(host, **settings):
    """What a request gives with ASAG armed for it."""
    chosen = AsagSettings.from_mapping({"enabled": True, **settings})
    host.unguided = []
    arm(host.adapter, host.p, chosen, unguided=lambda: host.unguided.append(True))
    return host.p.sample()


@torch.no_grad()
def plain(host):
    return host.sample()


def test_delta_is_added_after_cfg(host):
    before, unguided = snapshot(host.model.diffusion_model), plain(host)
    once, twice = guided(host, scale=1.0), guided(host, scale=2.0)
    assert (once - unguided).abs().max() > 1e-3
    torch.testing.assert_close(twice - unguided, 2 * (once - unguided))
    host.cfg = 3.0
    torch.testing.assert_close(guided(host, scale=1.0) - plain(host), once - unguided)
    assert snapshot(host.model.diffusion_model) == before
    assert host.objects.unet is host.unet
    assert "sampler_post_cfg_function" not in host.unet.model_options
    assert not hasattr(host.p, RUN)


def test_parts_of_a_prompt_are_weighted_by_their_absolute_values(host):
    part, other = ({"text": torch.full((1, 3, 4), value)} for value in (0.3, -0.7))

    def shift(*conds):
        host.conds = list(conds)
        return guided(host, scale=1.0) - plain(host)

    expected = (1.0 * shift(part) - 0.5 * shift(other)) / 1.5
    torch.testing.assert_close(shift(part, {**other, "strength": -0.5}), expected, rtol=1e-4, atol=1e-5)


def test_only_the_window_is_guided(host):
    shifted = (guided(host, start=0.25, end=0.75) - plain(host)).abs().amax(dim=(1, 2, 3, 4)) > 0
    assert shifted.tolist() == [False, True, True, False]


def test_outside_the_window_is_told(host):
    torch.testing.assert_close(guided(host, start=1.0), plain(host), rtol=0, atol=0)
    assert host.unguided
    assert "guided no step" in host.comments[0]


def test_what_cfg_plus_plus_samplers_renoise_with_is_shifted_as_much(host):
    unguided, expected = plain(host), host.uncond_denoised.pop()
    host.uncond_denoised.clear()
    shift = guided(host, scale=2.0) - unguided
    torch.testing.assert_close(host.uncond_denoised[0] - expected, shift[0])
    host.unconds = None
    guided(host, scale=2.0)
    assert not host.uncond_denoised.pop().any()


def test_a_sampler_that_replaces_what_guides_is_told(host):
    host.sampler_replaces_functions = True
    torch.testing.assert_close(guided(host, scale=2.0), plain(host), rtol=0, atol=0)
    assert host.unguided
    assert host.comments == [
        "ASAG guided 0 steps and left out others: it can't guide them with this sampler (such as reForge's CFG++ "
        "samplers); choose another sampler"
    ]
    assert not host.model.diffusion_model._forward_pre_hooks


def test_an_input_that_is_changed_after_the_model_is_not_perturbed(host, monkeypatch):
    """reForge runs pre-CFG functions after the model; inpaint_only's leaves another input for what follows."""
    unguided, shift = plain(host), guided(host, scale=1.0) - plain(host)
    sampling = sys.modules.pop("backend.sampling.sampling_function")
    sampling.__name__ = "ldm_patched.modules.samplers"
    monkeypatch.setitem(sys.modules, sampling.__name__, sampling)
    host.input_of_functions = torch.zeros_like(host.x)
    torch.testing.assert_close(guided(host, scale=1.0) - unguided, shift)


def test_in_unit_push_the_scale_is_the_size_of_the_push(host):
    shift = guided(host, scale=0.5, unit="push") - plain(host)
    # σ is 2: the push of a denoised picture is twice that of the noise, in whose space s₀ is its size.
    size = shift[0].square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(size, torch.full((2,), 1.0), rtol=0.05, atol=0)


@torch.no_grad()
def test_figures_leave_a_trace_and_change_nothing(host):
    unguided, expected = plain(host), guided(host, scale=3.0)
    trace = arm(host.adapter, host.p, AsagSettings(enabled=True, scale=3.0, figures=True), unguided=list)
    torch.testing.assert_close(host.p.sample(), expected, rtol=0, atol=0)
    assert [(step.number, step.scales) for step in trace.steps] == [(call, (3.0, 3.0)) for call in range(4)]
    # σ is 2: δ of a denoised picture is twice that of the noise.
    size = (expected - unguided)[0].square().mean(dim=(1, 2, 3)).sqrt() / (2 * 3.0)
    torch.testing.assert_close(torch.tensor(trace.steps[0].sizes), size, rtol=1e-4, atol=0)
    assert trace.heat(1).shape == (4, 4)
    assert [str(address) for address in trace.entropies()] == ["mid.0"]
    assert arm(host.adapter, host.p, AsagSettings(enabled=True), unguided=list) is None


def test_rescale_brings_contrast_back(host):
    strong, rescaled = guided(host, scale=50.0), guided(host, scale=50.0, rescale=1.0)
    cond, _ = calc_cond_uncond_batch(
        host.model, host.conds, None, host.x, torch.full((2,), 2.0), {"transformer_options": {}}
    )
    assert strong[0].std() > 1.2 * cond.std()
    torch.testing.assert_close(rescaled[0, 0].std(), cond[0].std())


def test_other_post_cfg_functions_count_before_and_after(host):
    unguided = plain(host)
    shift = guided(host, scale=1.0) - unguided
    host.unet.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + 1.0)
    torch.testing.assert_close(guided(host, scale=1.0), unguided + shift + 1.0)
    assert len(host.unet.model_options["sampler_post_cfg_function"]) == 1


def test_a_protected_area_is_put_back_after_guidance(host):
    def blend(args):
        return args["denoised"] * mask

    mask = torch.zeros(4, 4)
    mask[1:3] = 1
    blend.__module__ = "preprocessor_inpaint.py"
    shift = (guided(host, scale=1.0) - plain(host)) * mask
    host.unet.set_model_sampler_post_cfg_function(blend)
    host.unet.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + 1.0)
    found = guided(host, scale=1.0) - plain(host)
    torch.testing.assert_close(found, shift)
    assert not found[..., 0, :].any()
    assert len(host.unet.model_options["sampler_post_cfg_function"]) == 2


def test_another_model_in_the_middle_of_a_run_is_guided_too(host):
    sample = host.p.sample

    def refined():
        first = sample()
        # A refiner brings other objects, without the post-CFG function.
        host.objects.unet = host.unet = Patcher(host.model)
        return torch.cat([first, sample()])

    host.p.sample = refined
    both = guided(host, scale=1.0)
    torch.testing.assert_close(both[:4], both[4:])
    assert host.objects.unet is host.unet


def test_the_layers_are_chosen_once_for_a_model(host, monkeypatch):
    """What a family learns of a model while it runs is kept with its layers."""
    adapter, chosen = sys.modules["asag.hosts.forge"], []
    choose = adapter.choose_layers
    monkeypatch.setattr(adapter, "choose_layers", lambda *given: chosen.append(given) or choose(*given))
    assert len(guided(host, scale=1.0)) > 1
    host.model.diffusion_model = Unet()
    guided(host, scale=1.0)
    assert [each[0] is host.model.diffusion_model for each in chosen] == [False, True]


def test_unknown_blocks_end_the_request_before_it_samples(host):
    with pytest.raises(Refused, match=r"blocks: 'out\.3'.*mid") as refused:
        guided(host, blocks="out.3")
    assert refused.value.status_code == 422
    assert host.objects.unet is host.unet


def test_the_field_is_named_that_a_pass_has_its_blocks_from(host):
    host.p.enable_hr = True
    for settings, field in (
        ({"blocks": "out.3", "hires": "hires"}, "blocks"),
        ({"hires_blocks": "out.3", "hires": "both"}, "hires_blocks"),
    ):
        with pytest.raises(Refused, match=rf"settings: {field}: 'out\.3'"):
            guided(host, **settings)


@pytest.mark.parametrize("mark", ["model", "network"])
def test_a_compiled_model_is_refused(host, mark):
    if mark == "model":
        host.model._torch_compile_config = ("dynamic",)
    else:
        host.model.diffusion_model._orig_mod = None
    with pytest.raises(Refused, match="compiled model"):
        guided(host)


def test_a_model_of_no_known_family_is_refused(host):
    host.model.diffusion_model = nn.Linear(2, 2)
    with pytest.raises(Refused, match=r"model: .*Linear"):
        guided(host)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.cuda.OutOfMemoryError("no memory\nfor this"), "OutOfMemoryError: no memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_failing_perturbed_pass_ends_the_request_and_leaves_nothing(host, monkeypatch, error, told):
    unguided, before = plain(host), snapshot(host.model.diffusion_model)
    sampling = sys.modules["backend.sampling.sampling_function"]

    def failing(*args):
        raise error

    monkeypatch.setattr(sampling, "calc_cond_uncond_batch", failing)
    with pytest.raises(Refused, match=f"weakened prediction failed: {told}$") as refused:
        guided(host)
    assert refused.value.status_code == 500
    assert snapshot(host.model.diffusion_model) == before
    assert host.objects.unet is host.unet
    torch.testing.assert_close(plain(host), unguided, rtol=0, atol=0)


def test_what_fails_in_the_callback_ends_the_request_too(host, monkeypatch):
    forge = sys.modules["asag.hosts.forge"]

    def failing(*args):
        raise RuntimeError("broken")

    monkeypatch.setattr(forge, "ForgeStep", failing)
    with pytest.raises(Refused, match="broken"):
        guided(host)
    assert host.fails
    assert not host.model.diffusion_model._forward_pre_hooks
    assert host.objects.unet is host.unet


def test_a_disarmed_request_is_the_hosts_own(host):
    arm(host.adapter, host.p, AsagSettings(enabled=True), unguided=list)
    disarm(host.p)
    torch.testing.assert_close(host.p.sample(), plain(host))


def test_without_a_loaded_model_the_host_says_so(host):
    host.sd_models.model_data.sd_model = None
    with pytest.raises(Exception, match="no model is loaded yet") as caught:
        host.adapter.model()
    assert caught.value.status_code == 422
