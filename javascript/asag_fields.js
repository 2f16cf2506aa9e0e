// The fields of the accordion: which are shown, where sliders end, and names for screen readers. Without this file all
// fields are shown and sliders are as long as what their fields take.
(function () {
    "use strict";

    const TICK_MS = 400; // values also change by presets, pasted texts and ui-config.json, without an event

    function root() {
        return typeof gradioApp === "function" ? gradioApp() : document;
    }

    // What asag/webui/ui.py says of fields, by elem_id.
    function apply(rules) {
        for (const [id, rule] of Object.entries(rules)) {
            const component = root().querySelector(`#${id}`);
            if (!component) continue;
            if (rule.slider_maximum) shorten(component.querySelector("input[type=range]"), rule.slider_maximum);
            if (rule.methods) {
                const method = root().querySelector(`#${rule.of} input`);
                component.toggleAttribute("hidden", Boolean(method) && !rule.methods.includes(method.value));
            }
        }
    }

    // The slider alone: the field beside it takes what gradio was told, which is more. One that was made shorter in
    // ui-config.json stays so.
    function shorten(slider, maximum) {
        if (slider && Number(slider.max) > maximum) slider.max = maximum;
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

    setInterval(() => {
        nameFields();
        for (const place of root().querySelectorAll(".asag-about")) apply(JSON.parse(place.dataset.fields));
    }, TICK_MS);
})();
