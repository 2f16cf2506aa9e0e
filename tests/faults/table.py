"""What comes of each call out of asag that fails: a row for each, by file; and why some have none here.

`fails` is what comes of an error, or of memory that runs out, in the WebUIs' adapters; diffusers' give the error itself
to whoever called (RAISED), as all of them do with a KeyboardInterrupt. `nan` is what comes of NaN in what the call
gives. What must be so after any of them: tests/faults/aftermath.py.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.faults.aftermath import HOSTS_OWN, LEFT_OUT, NOTED, RAISED, REFUSED, SAME, WHOLE_PASS

A1111, FORGE, DIFFUSERS, GUIDER = ("a1111",), ("forge",), ("diffusers",), ("guider",)
WEBUIS = A1111 + FORGE
WITH_FIGURES = WEBUIS + DIFFUSERS
ALL = WITH_FIGURES + GUIDER


class Row(NamedTuple):
    """The adapters that come by the calls, and what comes of a failure there: one of these. No `nan`: from numbers it
    makes numbers, or gives none."""

    places: tuple[str, ...]
    fails: str | tuple[str, ...]
    nan: str | tuple[str, ...] = ()


ROWS_OF_FILES = {
    "asag/attention.py": {
        "torch": Row(WITH_FIGURES, WHOLE_PASS, SAME),
    },
    "asag/branch.py": {
        "RowBranch.open: stage.register_forward_pre_hook": Row(ALL, WHOLE_PASS),
        "RowBranch.open: stage.register_forward_hook": Row(ALL, WHOLE_PASS),
        "torch": Row(ALL, WHOLE_PASS, HOSTS_OWN),
        "_Boundary.__torch_function__: func": Row(ALL, WHOLE_PASS, SAME),
        "mapped: function": Row(ALL, WHOLE_PASS, SAME),
    },
    "asag/chosen_heads.py": {
        "torch": Row(WITH_FIGURES, WHOLE_PASS),
    },
    "asag/device_scores.py": {
        "torch": Row(ALL, WHOLE_PASS, LEFT_OUT),
    },
    "asag/finite.py": {
        "torch": Row(ALL, REFUSED),
    },
    "asag/guidance.py": {
        "torch": Row(WITH_FIGURES, REFUSED),
    },
    "asag/hosts/a1111_combination.py": {
        "Combination._around.combined: original": Row(A1111, RAISED, HOSTS_OWN),
    },
    "asag/hosts/a1111_model.py": {
        "A1111Unet.__init__: hypernetwork.apply_hypernetworks": Row(A1111, WHOLE_PASS, LEFT_OUT),
    },
    "asag/hosts/a1111_step.py": {
        "SeenStep.__init__: self.inner_model.register_forward_pre_hook": Row(A1111, REFUSED),
        "torch": Row(A1111, REFUSED),
        "A1111Step._sharing.forward: original": Row(A1111, RAISED, HOSTS_OWN),
        "A1111Step._sharing.forward.plain: original": Row(A1111, WHOLE_PASS, HOSTS_OWN),
        "A1111Step._again: self.inner_model": Row(A1111, REFUSED, LEFT_OUT),
    },
    "asag/hosts/diffusers_call.py": {
        "torch": Row(DIFFUSERS, RAISED),
    },
    "asag/hosts/diffusers_guidance.py": {
        "Guidance.attach: self.denoiser.register_forward_pre_hook": Row(DIFFUSERS, RAISED),
        "Guidance.attach: self.denoiser.register_forward_hook": Row(DIFFUSERS, RAISED),
        "Guidance.predict_weakened: self.model.forward": Row(DIFFUSERS, RAISED, LEFT_OUT),
    },
    "asag/hosts/diffusers_guider.py": {
        "AdversarialSinkhornAttentionGuidance._replace.forward: run": Row(GUIDER, RAISED, LEFT_OUT),
        "AdversarialSinkhornAttentionGuidance.prepare_inputs_from_block_state: self._prepare_batch_from_block_state": Row(  # noqa: E501
            GUIDER, RAISED
        ),
        "AdversarialSinkhornAttentionGuidance.forward: rescale_noise_cfg": Row(GUIDER, RAISED, HOSTS_OWN),
        "AdversarialSinkhornAttentionGuidance.forward: GuiderOutput": Row(GUIDER, RAISED),
    },
    "asag/hosts/diffusers_pass.py": {
        "torch": Row(DIFFUSERS, RAISED),
    },
    "asag/hosts/diffusers_shared.py": {
        "SharedWork.conditional.run: forward": Row(GUIDER, RAISED, HOSTS_OWN),
        "SharedWork.weakened.run: forward": Row(GUIDER, RAISED, LEFT_OUT),
    },
    "asag/hosts/forge.py": {
        "ForgeRun._patch: objects.unet.clone": Row(FORGE, REFUSED),
        "_host_pass.predict: home.calc_cond_uncond_batch": Row(FORGE, REFUSED, LEFT_OUT),
    },
    "asag/hosts/forge_step.py": {
        "SeenStep.__init__: network.register_forward_pre_hook": Row(FORGE, REFUSED),
        "ForgeStep.__init__: network.register_forward_pre_hook": Row(FORGE, REFUSED),
        "ForgeStep.__init__: network.register_forward_hook": Row(FORGE, REFUSED),
        "ForgeStep._sharing.forward: original": Row(FORGE, RAISED, HOSTS_OWN),
        "ForgeStep._sharing.forward.plain: original": Row(FORGE, WHOLE_PASS, HOSTS_OWN),
        "ForgeStep._record: x.clone": Row(FORGE, REFUSED),
        "ForgeStep._record: timestep.clone": Row(FORGE, REFUSED),
        "ForgeStep._sharing.forward.plain: call.x.clone": Row(FORGE, WHOLE_PASS),
        "ForgeStep._layers_run: layer.module.register_forward_pre_hook": Row(FORGE, REFUSED),
        # For the record, for a call that shares work, and for a whole pass.
        "_copied: each.clone": Row(FORGE, (REFUSED, WHOLE_PASS)),
        "ForgeStep.predict.branched: predict": Row(FORGE, REFUSED, LEFT_OUT),
        "ForgeStep.predict.whole: predict": Row(FORGE, REFUSED, LEFT_OUT),
        "ForgeStep._played.forward: original": Row(FORGE, REFUSED, LEFT_OUT),
    },
    "asag/hosts/generation.py": {
        "arm.guarded: sample": Row(WEBUIS, RAISED, HOSTS_OWN),
    },
    "asag/hosts/notes.py": {
        "note: p.comment": Row(WEBUIS, NOTED),
    },
    "asag/hosts/reuse.py": {
        "Reuse.call: plain": Row(WEBUIS, RAISED, HOSTS_OWN),
        "Reuse._tried: branched": Row(WEBUIS, WHOLE_PASS, HOSTS_OWN),
        "Reuse.predict: whole": Row(WEBUIS, REFUSED, LEFT_OUT),
        "torch": Row(WEBUIS, REFUSED),
    },
    "asag/hosts/scaling.py": {
        "torch": Row(WEBUIS, REFUSED),
    },
    "asag/joint_parts.py": {
        "torch": Row(GUIDER, RAISED, LEFT_OUT),
    },
    "asag/models/diffusers_mmdit.py": {
        "AttendingForward.__call__: self.host_forward": Row(GUIDER, RAISED, LEFT_OUT),
        "ReplacedAttention.__torch_function__: func": Row(GUIDER, RAISED, LEFT_OUT),
    },
    "asag/models/diffusers_unet.py": {
        "DiffusersUnet.replacement.forward: module": Row(DIFFUSERS, RAISED, LEFT_OUT),
        "_project: attention.to_q": Row(DIFFUSERS, RAISED, LEFT_OUT),
        "_project: attention.to_k": Row(DIFFUSERS, RAISED, LEFT_OUT),
        "_project: attention.to_v": Row(DIFFUSERS, RAISED, LEFT_OUT),
    },
    "asag/models/forge_unet.py": {
        "ForgeUnet.replacement.forward: original": Row(FORGE, WHOLE_PASS, LEFT_OUT),
    },
    "asag/models/ldm_unet.py": {
        "LdmUnet.replacement.forward: self.key_value_inputs": Row(A1111, WHOLE_PASS, LEFT_OUT),
        "LdmUnet.replacement.forward: projection": Row(A1111, WHOLE_PASS, LEFT_OUT),
        "LdmUnet.replacement.forward: module.to_out": Row(A1111, WHOLE_PASS, LEFT_OUT),
    },
    "asag/operators.py": {
        "torch": Row(A1111 + FORGE + GUIDER, WHOLE_PASS, LEFT_OUT),
    },
    "asag/perturb.py": {
        "_by_rows.by_rows.run: function": Row(ALL, WHOLE_PASS, LEFT_OUT),
        "torch": Row(ALL, WHOLE_PASS, HOSTS_OWN),
    },
    "asag/random_state.py": {
        "torch": Row(ALL, (WHOLE_PASS, REFUSED)),
    },
    "asag/sinkhorn.py": {
        "torch": Row(ALL, WHOLE_PASS, SAME),
    },
    "asag/trace.py": {
        "torch": Row(WITH_FIGURES, REFUSED),
    },
    "asag/units.py": {
        "torch": Row(ALL, REFUSED),
    },
    "asag/watched.py": {
        "torch": Row(WITH_FIGURES, WHOLE_PASS),
    },
    "asag/hosts/conflicts.py": {
        "conflict: script.title": Row(WEBUIS, REFUSED),
    },
}

FILES = "tests/faults/test_files.py"
GPU = "a GPU: tests/test_kernel_choice.py, tests/test_kernels.py, tests/test_attention_kernels.py"
AT_START = "as the WebUI starts: it logs what fails, and runs without ASAG"
MODELS = "like the layers above, of other models: tests/models"
ELSEWHERE_OF_FILES = {
    "asag/attention_kernels.py": {"torch": GPU},
    "asag/blended.py": {"torch": "as asag/operators.py, at an amount below 1"},
    "asag/branch.py": {"RowBranch.growing.grown: function": "Neo's models: tests/models/test_neo_transformers.py"},
    "asag/hosts/a1111.py": {
        "A1111.__init__: script_callbacks.on_cfg_denoiser": AT_START,
        "A1111.__init__: script_callbacks.on_cfg_denoised": AT_START,
    },
    "asag/hosts/a1111_model.py": {
        "A1111Unet.replacement: sys.modules[].self_attn_forward": "HyperTile: tests/webui/test_other_extensions.py"
    },
    "asag/hosts/checkpoints.py": {
        "contents: path.stat": FILES,
        "contents: path.with_suffix().exists": FILES,
        "_safetensors_shapes: path.open": FILES,
        "_safetensors_shapes: file.read": FILES,
        "_gguf_shapes: package.GGUFReader": "tests/hosts/test_checkpoints.py",
        "_gguf_package: import_module": "tests/hosts/test_checkpoints.py",
    },
    "asag/hosts/diffusers_guider.py": {
        "AdversarialSinkhornAttentionGuidance.__init__: self.register_to_config": "before there is anything to undo",
        "AdversarialSinkhornAttentionGuidance.prepare_inputs: self._prepare_batch": "as the one beside it",
    },
    "asag/hosts/diffusers_other_code.py": {
        "Memory._note: given.get_state": "a generator of others': tests/hosts/test_diffusers_other_code.py"
    },
    "asag/hosts/forge.py": {
        "Forge.__init__: script_callbacks.on_cfg_denoiser": AT_START,
        "_pass_for.predict: through": "beside Spectrum: tests/hosts/test_forge_wrapper.py",
        "_host_pass.predict: windows.should_use_context": "Neo's videos: tests/hosts/test_forge_second_pass.py",
        "_host_pass.predict: windows.execute": "Neo's videos: tests/hosts/test_forge_second_pass.py",
    },
    "asag/hosts/forge_step.py": {
        "torch": "beside reference units: tests/hosts/test_forge_step.py",
        "ForgeStep.repeats: predict": "beside Spectrum: tests/hosts/test_forge_wrapper.py",
        "ForgeStep._played.forward: call.x.clone": "beside code that counts: tests/hosts/test_counting_hooks.py",
    },
    "asag/hosts/generation.py": {
        "GuidedRun.on_cfg_denoiser: self.entrance().register_forward_pre_hook": "after an error, which ends the run",
        "arm.guarded: unguided": "a function of the script's, which removes an entry of a dict",
    },
    "asag/hosts/loaded.py": {"checkpoints: sd_models.checkpoint_aliases.get": FILES},
    "asag/hosts/sample_wrapper.py": {"SampleWrapper.__call__: self.sample": "tests/hosts/test_sample_wrapper.py"},
    "asag/hosts/webui.py": {"find_host: find_spec": AT_START},
    "asag/kernel_choice.py": {
        "KernelChoice.__init__: importlib.util.find_spec": AT_START,
        "KernelChoice.tried: importlib.import_module": GPU,
        "torch": GPU,
    },
    "asag/kernel_launch.py": {"torch": GPU},
    "asag/kernel_path.py": {"torch": GPU},
    "asag/models/diffusers_unet.py": {
        "DiffusersUnet.replacement.forward: attention.spatial_norm": MODELS,
        "DiffusersUnet.replacement.forward: attention.group_norm": MODELS,
        "torch": MODELS,
        "_project: attention.to_qkv": MODELS,
        "_project: attention.norm_q": MODELS,
        "_project: attention.norm_k": MODELS,
    },
    "asag/models/forge_unet.py": {"ForgeUnet.replacement.forward.replacement: others": MODELS},
    "asag/models/host_attention.py": {
        "HostTransformer.replacement.forward: original": MODELS,
        "StandIn._around.attention: host": MODELS,
        "StandIn._around.attention.weakened: around": MODELS,
        "StandIn._around.attention: options[]": MODELS,
    },
    "asag/models/neo_qwen21.py": {"torch": MODELS},
    "asag/perturb.py": {"sparing.spared: function": "reference units: tests/hosts/test_a1111_control.py"},
    "asag/preset_file.py": {
        "PresetFile._locked: self.path.parent.mkdir": FILES,
        "PresetFile._locked: FileLock": FILES,
        "PresetFile._locked: lock.acquire": FILES,
        "PresetFile._locked: lock.release": FILES,
        "PresetFile._parse: self.path.read_text": FILES,
        "PresetFile._put_aside: aside.exists": FILES,
        "PresetFile._put_aside: os.replace": FILES,
        "PresetFile._write: tempfile.TemporaryDirectory": FILES,
        "PresetFile._write: fresh.write_bytes": FILES,
        "PresetFile._write: os.replace": FILES,
    },
    "asag/rounding.py": {"torch": "in half precision alone, as asag/finite.py"},
    "asag/trace_figure.py": {"torch": "behind one `try`, with a note: tests/test_figures.py"},
    "asag/webui/about.py": {"docs_address: ….read_text": FILES},
    "asag/webui/copies.py": {
        "second_copy.SecondCopy.ui: InputAccordion": AT_START,
        "_folder: os.path.abspath": AT_START,
    },
    "asag/webui/distributed.py": {
        "_jobs: script.title": "in a `try` of its own: tests/test_distributed.py",
        "_missing: job.thread.is_alive": "in a `try` of its own: tests/test_distributed.py",
    },
    "asag/webui/earlier_labels.py": {"start_values: ui_config.read_text": FILES},
    "asag/webui/gallery_figures.py": {"allowed: find_spec": "in the script's `try`: tests/test_script.py"},
    "asag/webui/routes.py": {"add_routes: app.add_api_route": AT_START},
    "asag/webui/xyz.py": {
        "_axis: xyz_grid.AxisOption": AT_START,
        "_set_arguments: each.title": "in X/Y/Z plot, which ends with the error: tests/webui/test_plot.py",
    },
}

ROWS = {f"{path}: {call}": row for path, rows in ROWS_OF_FILES.items() for call, row in rows.items()}
ELSEWHERE = {f"{path}: {call}": why for path, rows in ELSEWHERE_OF_FILES.items() for call, why in rows.items()}
