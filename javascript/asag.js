// The block map: the loaded model's self-attention blocks as the network is shaped, in step with the list in the text
// field. What a list means is asked of the route /asag/blocks, so that nothing is parsed here. Without this file the
// text field suffices.
(function () {
    "use strict";

    // A second copy of the extension brings this file once more; two maps in one place would undo each other's clicks.
    if (window.asagBlockMap) return;
    window.asagBlockMap = true;

    const TICK_MS = 400; // how often the fields are looked at: settings also change by presets and pasted texts
    const STALE_MS = 5000; // how long the answer holds: the model may have been switched
    const SIDES = {in: "left", mid: "bottom", out: "right"};
    const WORDS = {auto: "Middle", late: "Later", all: "All"};

    function root() {
        return typeof gradioApp === "function" ? gradioApp() : document;
    }

    function element(tag, classes, text) {
        const made = document.createElement(tag);
        made.className = classes;
        if (text) made.textContent = text;
        return made;
    }

    class BlockMap {
        constructor(place) {
            this.place = place;
            this.shown = null; // the text that was asked about last
            this.asked = 0; // when
            this.questions = 0;
            this.open = 0; // questions without an answer yet
            this.clicks = Promise.resolve(); // one is done after the other
            this.pressed = false; // a mouse button is down on the map
            this.waiting = null; // the answer to draw when it's up
            this.note = {}; // why a click changed nothing, and the text at which it didn't
            this.drawn = "";
            this.focused = null;
            place.addEventListener("click", (event) => this.clicked(event));
            place.addEventListener("keydown", (event) => this.moved(event));
            place.addEventListener("pointerdown", () => (this.pressed = true));
            for (const end of ["pointerup", "pointercancel"]) {
                window.addEventListener(end, () => setTimeout(() => this.released(), 0)); // after the click
            }
        }

        field() {
            return root().querySelector(`#${this.place.dataset.field} textarea, #${this.place.dataset.field} input`);
        }

        tick() {
            const field = this.field();
            if (!field || !this.place.offsetParent) return;
            // A slow answer isn't asked for again: it would never be the last question's.
            const stale = !this.open && Date.now() - this.asked > STALE_MS;
            if (field.value !== this.shown || stale) this.look(field.value);
        }

        async look(text) {
            this.shown = text;
            const question = ++this.questions;
            const answer = await this.ask({blocks: text});
            if (question === this.questions) this.show(answer, text); // else a later question is on its way
        }

        // The field's text without the block, or with it. Where someone wrote in the field meanwhile, that holds.
        async toggle(block) {
            const text = this.field().value;
            const answer = await this.ask({blocks: text, toggle: block});
            if (this.field().value !== text) return;
            this.questions++;
            if (answer.blocks && answer.text !== text) this.write(answer.text);
            this.show(answer, this.field().value);
        }

        async ask(parameters) {
            this.asked = Date.now();
            this.open++;
            try {
                const response = await fetch(`${this.place.dataset.route}?${new URLSearchParams(parameters)}`);
                const answer = await response.json();
                return response.ok ? answer : {told: answer.detail || "The model's blocks can't be shown."};
            } catch (error) {
                return {told: "The block map can't be reached; the list above works all the same."};
            } finally {
                this.open--;
            }
        }

        show(answer, text) {
            if (answer.note) this.note = {text, note: answer.note};
            if (this.note.text === text) answer.note = this.note.note;
            else this.note = {};
            const drawn = JSON.stringify(answer);
            if (drawn === this.drawn) return;
            this.drawn = drawn;
            // A button that goes while it's pressed gets no click.
            if (this.pressed) this.waiting = answer;
            else this.draw(answer);
        }

        released() {
            const answer = this.waiting;
            this.pressed = false;
            this.waiting = null;
            if (answer) this.draw(answer);
        }

        write(text) {
            const field = this.field();
            this.shown = field.value = text;
            field.dispatchEvent(new Event("input", {bubbles: true}));
        }

        clicked(event) {
            const button = event.target.closest("button");
            if (!button) return;
            this.focused = button.dataset.key;
            if (button.dataset.word) {
                this.write(button.dataset.word);
                this.look(button.dataset.word);
            } else {
                const act = () => this.toggle(button.dataset.block);
                this.clicks = this.clicks.then(act, act);
            }
        }

        // Arrow keys walk from block to block; only one of them takes part in the order of Tab.
        moved(event) {
            const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
            const blocks = [...this.place.querySelectorAll("button[data-block]")];
            const at = blocks.indexOf(event.target);
            if (!step || at < 0) return;
            event.preventDefault();
            const next = blocks[(at + step + blocks.length) % blocks.length];
            blocks.forEach((each) => (each.tabIndex = each === next ? 0 : -1));
            next.focus();
        }

        draw(answer) {
            const hadFocus = this.place.contains(document.activeElement) ||
                this.place.contains(this.place.getRootNode().activeElement);
            this.place.replaceChildren();
            if (answer.told) {
                this.place.append(element("p", "asag-told", answer.told));
                return;
            }
            this.place.append(this.words(answer), this.network(answer), ...this.notes(answer));
            const buttons = [...this.place.querySelectorAll("button")];
            const blocks = buttons.filter((each) => each.dataset.block);
            const kept = buttons.find((each) => each.dataset.key === this.focused);
            blocks.forEach((each) => (each.tabIndex = -1));
            const first = kept && kept.dataset.block ? kept : blocks[0];
            if (first) first.tabIndex = 0;
            if (hadFocus && kept) kept.focus();
        }

        words(answer) {
            const row = element("div", "asag-words");
            row.setAttribute("role", "group");
            row.setAttribute("aria-label", "Ready-made choices of blocks");
            for (const [word, label] of Object.entries(WORDS)) {
                const button = element("button", "asag-word", label);
                button.type = "button";
                button.dataset.word = button.dataset.key = word;
                button.title = word === "all" ? "every block" : `${word}: ${answer[word]}`;
                button.setAttribute("aria-pressed", String(answer.text.trim().toLowerCase() === word));
                row.append(button);
            }
            return row;
        }

        network(answer) {
            const parts = {};
            for (const block of answer.blocks) {
                const part = block.address.split(".")[0];
                (parts[part] = parts[part] || []).push(block);
            }
            const isUnet = "in" in parts || "out" in parts;
            const network = element("div", isUnet ? "asag-u" : "asag-ladder");
            network.setAttribute("role", "group");
            network.setAttribute("aria-label", `Self-attention blocks of the ${answer.family}`);
            for (const [part, blocks] of Object.entries(parts)) {
                const column = element("div", `asag-part asag-${SIDES[part] || "rungs"}`);
                if (!isUnet) column.append(element("span", "asag-part-name", part));
                column.append(...blocks.map((block) => this.block(block, answer)));
                network.append(column);
            }
            return network;
        }

        block(block, answer) {
            const state = block.chosen === 0 ? "false" : block.chosen === block.layers ? "true" : "mixed";
            const said = {false: "as it is", true: "weakened", mixed: `${block.chosen} weakened`}[state];
            const number = block.address.split(".")[1];
            const isUnet = block.address === "mid" || /^(in|out)\./.test(block.address);
            const button = element("button", "asag-block", isUnet ? block.address : number);
            button.type = "button";
            button.dataset.block = button.dataset.key = block.address;
            button.title = `${block.address}: ${block.layers} ${block.layers === 1 ? "layer" : "layers"}, ${said}`;
            button.setAttribute("aria-label", button.title);
            button.setAttribute("aria-pressed", state);
            if (block.address === answer.auto) button.classList.add("asag-auto");
            return button;
        }

        notes(answer) {
            const notes = [];
            for (const item of answer.unknown) {
                notes.push(element("span", "asag-unknown", `\u2717 ${item}: not in this model`));
            }
            for (const [item, means] of Object.entries(answer.counted || {})) {
                notes.push(element("span", "asag-counted", `${item} is ${means} here`));
            }
            if (answer.problem && !answer.unknown.length) notes.push(element("p", "asag-told", answer.problem));
            if (answer.note) {
                notes.push(element("p", "asag-told asag-note", answer.note));
                notes[notes.length - 1].setAttribute("role", "status");
            }
            const legend = element("p", "asag-legend", "\u25a0 weakened  \u25e7 in part  \u25cb as it is  dashed: auto");
            legend.setAttribute("aria-hidden", "true");
            const known = answer.experimental ? `${answer.family} (experimental)` : answer.family;
            notes.push(legend, element("p", "asag-family", `${known}; auto is ${answer.auto}: ${answer.auto_reason}`));
            if (answer.checkpoint) notes.push(this.whose(answer));
            return notes;
        }

        whose(answer) {
            const loaded = `These are the blocks of ${answer.checkpoint}, the checkpoint that is loaded.`;
            if (!answer.chosen_checkpoint) return element("p", "asag-whose", loaded);
            const other = `${answer.chosen_checkpoint} is chosen: it loads when you generate, and its blocks may differ.`;
            return element("p", "asag-told asag-whose", `${loaded} ${other}`);
        }
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

    const maps = new WeakMap();

    setInterval(() => {
        nameFields();
        for (const place of root().querySelectorAll(".asag-map")) {
            if (!maps.has(place)) maps.set(place, new BlockMap(place));
            maps.get(place).tick();
        }
    }, TICK_MS);
})();
