"""Which test files speak of which module. What only starts other processes or browsers isn't among them."""

from __future__ import annotations

ARITHMETIC = ["tests/test_sinkhorn.py", "tests/test_attention.py", "tests/test_operators.py"]
A1111 = ["tests/hosts/test_a1111.py", "tests/hosts/test_a1111_step.py", "tests/hosts/test_a1111_control.py"]
FORGE = [
    "tests/hosts/test_forge_step.py",
    "tests/hosts/test_forge_arithmetic.py",
    "tests/hosts/test_forge_wrapper.py",
    "tests/hosts/test_forge.py",
    "tests/hosts/test_forge_second_pass.py",
]
WEBUIS = [*A1111, *FORGE, "tests/hosts/test_counting_hooks.py", "tests/hosts/test_run_notes.py"]
DIFFUSERS = [
    "tests/hosts/test_diffusers_call.py",
    "tests/hosts/test_diffusers.py",
    "tests/hosts/test_diffusers_reuse.py",
    "tests/hosts/test_diffusers_variants.py",
    "tests/hosts/test_diffusers_trace.py",
]
NEO = [
    "tests/models/test_host_families.py",
    "tests/models/test_neo_transformers.py",
    "tests/models/test_host_attention.py",
]

# pytest's -k. The others measure a process of its own, or take long for what smaller ones show as well.
CHOSEN = "not memory_at and not 4096"

TESTS = {
    "asag/sinkhorn.py": ARITHMETIC[:2],
    "asag/attention.py": [*ARITHMETIC, "tests/test_device_scores.py"],
    "asag/attention_arguments.py": ["tests/test_attention.py"],
    "asag/kernel_choice.py": ["tests/test_kernel_choice.py", "tests/test_cuda_counts.py"],
    "asag/attention_kernels.py": ["tests/test_attention_kernels.py", "tests/test_cuda_counts.py"],
    "asag/device_scores.py": ["tests/test_device_scores.py", "tests/test_cuda_counts.py"],
    "asag/operators.py": [*ARITHMETIC[1:], "tests/models/test_diffusers_mmdit.py"],
    "asag/precision.py": ["tests/test_guidance.py", "tests/test_operators.py"],
    "asag/guidance.py": ["tests/test_guidance.py"],
    "asag/blocks.py": ["tests/test_blocks.py", "tests/test_shared_lists.py"],
    "asag/settings.py": ["tests/test_settings.py", "tests/test_counted.py"],
    "asag/option.py": ["tests/test_settings.py"],
    "asag/echo.py": ["tests/test_echo.py"],
    "asag/presets.py": ["tests/test_presets.py"],
    "asag/preset_file.py": ["tests/test_presets.py"],
    "asag/trace_figure.py": ["tests/test_figures.py"],
    "asag/trace.py": ["tests/test_trace.py", "tests/test_figures.py"],
    "asag/watched.py": ["tests/test_trace.py"],
    "asag/counted.py": ["tests/test_counted.py"],
    "asag/branch.py": ["tests/test_perturb.py", "tests/test_branch.py", "tests/hosts/test_forge_step.py"],
    "asag/perturb.py": [
        "tests/test_perturb.py",
        "tests/test_branch.py",
        "tests/models/test_ldm_unet.py",
        *A1111,
        *FORGE[:2],
    ],
    "asag/random_state.py": ["tests/test_random_state.py", "tests/test_branch.py", *A1111, *FORGE[:3]],
    "asag/__main__.py": ["tests/lab/test_commands.py"],
    "asag/hosts/a1111.py": A1111,
    "asag/hosts/a1111_step.py": [*A1111, "tests/hosts/test_counting_hooks.py"],
    "asag/hosts/a1111_model.py": A1111,
    "asag/hosts/a1111_control.py": A1111,
    "asag/hosts/forge.py": FORGE,
    "asag/hosts/forge_step.py": [*FORGE, "tests/hosts/test_counting_hooks.py"],
    "asag/hosts/forge_rows.py": [*FORGE[:3], "tests/test_branch.py"],
    "asag/hosts/generation.py": [
        "tests/hosts/test_generation.py",
        "tests/hosts/test_sample_wrapper.py",
        *WEBUIS,
        "tests/test_script.py",
    ],
    "asag/hosts/reuse.py": ["tests/hosts/test_reuse.py", *WEBUIS],
    "asag/hosts/checked.py": ["tests/hosts/test_checked.py", *WEBUIS, "tests/hosts/test_before_loading.py"],
    "asag/hosts/before_loading.py": ["tests/hosts/test_before_loading.py", "tests/test_script.py"],
    "asag/hosts/shown.py": ["tests/hosts/test_shown.py", "tests/test_script.py"],
    "asag/hosts/checkpoints.py": ["tests/hosts/test_checkpoints.py", *WEBUIS],
    "asag/hosts/conflicts.py": ["tests/hosts/test_conflicts.py"],
    "asag/hosts/run_notes.py": ["tests/hosts/test_notes_on.py", *WEBUIS],
    "asag/hosts/notes.py": ["tests/hosts/test_run_notes.py", "tests/test_script.py"],
    "asag/hosts/refused.py": WEBUIS,
    "asag/hosts/loaded.py": ["tests/hosts/test_loaded.py", *FORGE],
    "asag/hosts/webui.py": ["tests/hosts/test_webui.py", "tests/test_script.py"],
    "asag/hosts/other_code.py": ["tests/hosts/test_other_code.py", "tests/hosts/test_counting_hooks.py", *FORGE],
    "asag/hosts/kept_state.py": [
        "tests/hosts/test_kept_state.py",
        "tests/hosts/test_other_code.py",
        "tests/hosts/test_counting_hooks.py",
        *FORGE,
    ],
    "asag/hosts/diffusers_pipeline.py": [*DIFFUSERS, "tests/hosts/test_diffusers_beside.py"],
    "asag/hosts/diffusers_guidance.py": [*DIFFUSERS, "tests/hosts/test_diffusers_beside.py"],
    "asag/hosts/diffusers_models.py": [
        "tests/hosts/test_diffusers_other_code.py",
        *DIFFUSERS,
        "tests/hosts/test_diffusers_beside.py",
    ],
    "asag/hosts/diffusers_pass.py": [*DIFFUSERS, "tests/hosts/test_diffusers_guider.py"],
    "asag/hosts/diffusers_call.py": [*DIFFUSERS, "tests/hosts/test_diffusers_beside.py"],
    "asag/hosts/diffusers_caller.py": [
        "tests/hosts/test_diffusers_caller.py",
        *DIFFUSERS,
        "tests/hosts/test_diffusers_beside.py",
    ],
    "asag/hosts/diffusers_other_code.py": [
        "tests/hosts/test_diffusers_other_code.py",
        "tests/hosts/test_diffusers_beside.py",
        *DIFFUSERS,
    ],
    "asag/hosts/diffusers_guider.py": ["tests/hosts/test_diffusers_guider.py"],
    "asag/models/base.py": [
        "tests/models/test_base.py",
        "tests/models/test_ldm_unet.py",
        "tests/models/test_diffusers_unet.py",
        *NEO,
        *FORGE,
    ],
    "asag/models/tensor_names.py": ["tests/models/test_tensor_names.py"],
    "asag/models/ldm_unet.py": ["tests/models/test_ldm_unet.py", *A1111],
    "asag/models/forge_unet.py": ["tests/models/test_ldm_unet.py", *FORGE],
    "asag/models/diffusers_unet.py": ["tests/models/test_diffusers_unet.py", *DIFFUSERS],
    "asag/models/diffusers_mmdit.py": ["tests/models/test_diffusers_mmdit.py", *DIFFUSERS],
    "asag/models/host_attention.py": NEO,
    "asag/webui/api.py": ["tests/test_script.py", "tests/test_settings.py"],
    "asag/webui/infotext.py": ["tests/test_script.py", "tests/test_settings.py"],
    "asag/webui/xyz.py": ["tests/test_script.py"],
    "asag/webui/plain.py": ["tests/test_script.py", "tests/test_presets.py"],
    "asag/webui/about.py": ["tests/test_ui_labels.py"],
    "asag/webui/earlier_labels.py": ["tests/test_ui_labels.py"],
    "asag/webui/paste.py": ["tests/test_paste.py"],
    "asag/webui/routes.py": ["tests/test_script.py"],
    "asag/webui/copies.py": ["tests/test_copies.py"],
    "asag/webui/block_map.py": ["tests/test_block_map.py"],
    "asag/webui/gallery_figures.py": ["tests/test_figures.py", "tests/test_script.py"],
    "asag/preset_uses.py": ["tests/test_preset_uses.py"],
    "asag/webui/preset_panel.py": ["tests/test_preset_panel.py"],
    "asag/webui/ui.py": ["tests/test_ui.py"],
}
TESTS |= {f"asag/models/{name}.py": NEO for name in (
    "forge_flux", "forge_sd3", "neo_image_alone", "neo_lumina", "neo_qwen", "neo_qwen21", "neo_single_stream",
)}  # fmt: skip
