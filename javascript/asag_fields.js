// The fields of the accordion: which are shown, where sliders end, and names for screen readers. Without this file all
// fields are shown and sliders are as long as what their fields take.
(function () {
    "use strict";

    const TICK_MS = 400; // values also change by presets, pasted texts and ui-config.json, without an event
    const SETTLED_MS = 2500;
    const CHECKPOINT = "#setting_sd_model_checkpoint input, .model_selection input, #settings_json textarea";

    function root() {
        return typeof gradioApp === "function" ? gradioApp() : document;
    }

    // What asag/webui/ui.py says of fields, by elem_id.
    function apply(rules) {
        for (const [id, rule] of Object.entries(rules)) {
            const component = root().querySelector(`#${id}`);
            if (!component) continue;
            const unit = rule.units && root().querySelector(`#${rule.unit} input`);
            const inUnit = unit && rule.units[unit.value];
            if (inUnit) showUnit(component, inUnit);
            else if (rule.slider_maximum) shorten(component.querySelector("input[type=range]"), rule.slider_maximum);
            if (rule.methods) {
                const method = root().querySelector(`#${rule.of} input`);
                component.toggleAttribute("hidden", Boolean(method) && !rule.methods.includes(method.value));
            }
        }
    }

    // The slider alone: the field beside it takes what gradio was told, which is more. One that was made shorter in
    // ui-config.json stays so.
    function shorten(slider, maximum) {
        if (!slider) return;
        if (!slider.dataset.asagMost) slider.dataset.asagMost = slider.max;
        const wanted = String(Math.min(maximum, Number(slider.dataset.asagMost)));
        if (slider.max !== wanted) slider.max = wanted;
    }

    // A scale in another unit has another range, smaller steps and another help.
    function showUnit(component, unit) {
        const slider = component.querySelector("input[type=range]");
        const number = component.querySelector("input[type=number]");
        const before = `${slider.max} ${slider.step}`;
        for (const field of [slider, number]) {
            if (field.step !== String(unit.step)) field.step = unit.step;
        }
        shorten(slider, unit.slider_maximum);
        // The browser had moved the slider to what was allowed before.
        if (`${slider.max} ${slider.step}` !== before) slider.value = number.value;
        const help = component.querySelector('[data-testid="block-info"] + div');
        if (help && help.textContent.trim() !== unit.help) help.textContent = unit.help;
    }

    // gradio 3 gives a slider's two fields no name that a screen reader could say.
    function nameFields() {
        for (const component of root().querySelectorAll('[id*="asag_"].block')) {
            const title = component.querySelector('[data-testid="block-info"], label > span');
            for (const field of component.querySelectorAll("input:not([aria-label])")) {
                if (title && !(field.labels && field.labels.length)) field.setAttribute("aria-label", title.innerText);
            }
        }
    }

    // Which presets the list offers first depends on the checkpoint: it looks when the page opens and when another one
    // is chosen. A host may take up a change a little later than the page shows it.
    let checkpoint = null;
    let again = 0;

    function lookAtPresets() {
        const fields = [...root().querySelectorAll(CHECKPOINT)].map((each) => each.value);
        const shown = JSON.stringify(fields);
        const settled = again && Date.now() > again;
        if (shown === checkpoint && !settled) return;
        // Not while it's open: its order would change under the user's hand.
        if (root().querySelector('[id*="asag_preset"] input:focus')) return;
        const buttons = root().querySelectorAll(".asag-look");
        if (!buttons.length) return;
        again = shown === checkpoint ? 0 : Date.now() + SETTLED_MS;
        checkpoint = shown;
        buttons.forEach((button) => button.click());
    }

    setInterval(() => {
        nameFields();
        lookAtPresets();
        for (const place of root().querySelectorAll(".asag-about")) apply(JSON.parse(place.dataset.fields));
    }, TICK_MS);
})();
