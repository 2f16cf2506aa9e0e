// The block map: the loaded model's self-attention blocks as the network is shaped, in step with the list in the text
// field. What a list means is asked of the route /asag/blocks, so that nothing is parsed here. Without this file the
// text field suffices.
(function () {
    "use strict";

    // A second copy of the extension brings this file once more; two maps in one place would undo each other's clicks.
    if (window.asagBlockMap) return;
    window.asagBlockMap = true;

    const TICK_MS = 400; // how often the page is looked at: settings also change by presets and pasted texts
    const SETTLED_MS = 2500; // a host may take up a change of checkpoint a little later than the page shows it
    const SIDES = {in: "left", mid: "bottom", out: "right"};
    const WORDS = ["auto", "late", "all"];
    const STATES = {true: "weakened", mixed: "partly weakened", false: "unchanged", auto: "auto"};
    // What changes in a host's page when it chooses, loads or generates with another checkpoint.
    const SIGNS = "#setting_sd_model_checkpoint input, .model_selection input, #settings_json textarea, " +
        "#html_info_txt2img, #html_info_img2img, #html_log_txt2img, #html_log_img2img";

    function root() {
        return typeof gradioApp === "function" ? gradioApp() : document;
    }

    function element(tag, classes, text) {
        const made = document.createElement(tag);
        made.className = classes;
        if (text) made.textContent = text;
        return made;
    }

    // Other tabs and programs load checkpoints, too: an answer is of before if this has grown since.
    let returns = 0;
    window.addEventListener("focus", () => returns++);

    function signs() {
        const shown = [...root().querySelectorAll(SIGNS)].map((each) => each.value || each.textContent);
        return JSON.stringify([returns, ...shown]);
    }

    class BlockMap {
        constructor(place) {
            this.place = place;
            this.shown = null; // the text that was asked about last
            this.signs = null; // what the page showed then
            this.again = 0; // when to ask once more; 0: not
            this.questions = 0;
            this.unanswered = 0; // questions without an answer yet
            this.clicks = Promise.resolve(); // one is done after the other
            this.pressed = false; // a mouse button is down on the map
            this.waiting = null; // the answer to draw when it's up
            this.note = {}; // why a click changed nothing, and the text at which it didn't
            this.drawn = "";
            this.answer = null; // what is drawn
            this.opened = ""; // the block whose heads are shown
            this.focused = null;
            place.addEventListener("click", (event) => this.clicked(event));
            place.addEventListener("change", (event) => this.open(event));
            place.addEventListener("keydown", (event) => this.moved(event));
            place.addEventListener("pointerdown", () => (this.pressed = true));
            for (const end of ["pointerup", "pointercancel"]) {
                window.addEventListener(end, () => setTimeout(() => this.released(), 0)); // after the click
            }
        }

        field() {
            return root().querySelector(`#${this.place.dataset.field} textarea, #${this.place.dataset.field} input`);
        }

        // Asks when something changed since the last question, and nothing otherwise.
        tick() {
            const field = this.field();
            if (!field || !this.place.offsetParent) {
                this.signs = null; // what happens meanwhile isn't seen
                return;
            }
            // A slow answer isn't asked for again: it would never be the last question's.
            const settled = this.again && Date.now() > this.again && !this.unanswered;
            const now = signs();
            if (now !== this.signs) {
                if (this.signs !== null) this.again = Date.now() + SETTLED_MS;
                this.signs = now;
                this.look(field.value);
            } else if (settled || field.value !== this.shown) {
                this.again = settled ? 0 : this.again;
                this.look(field.value);
            }
        }

        async look(text) {
            this.shown = text;
            const question = ++this.questions;
            const answer = await this.ask({blocks: text});
            if (question === this.questions) this.show(answer, text); // else a later question is on its way
        }

        // The field's text without a block or head, or with it. Where someone wrote in the field meanwhile, that holds.
        async toggle(what) {
            const text = this.field().value;
            const answer = await this.ask({blocks: text, toggle: what});
            if (this.field().value !== text) return;
            this.questions++;
            if (answer.blocks && answer.text !== text) this.write(answer.text);
            this.show(answer, this.field().value);
        }

        async ask(parameters) {
            this.unanswered++;
            try {
                const response = await fetch(`${this.place.dataset.route}?${new URLSearchParams(parameters)}`);
                const answer = await response.json();
                return response.ok ? answer : {told: answer.detail || "The model's blocks can't be shown."};
            } catch (error) {
                return {told: "The block map can't be loaded. You can still write blocks in the field above."};
            } finally {
                this.unanswered--;
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
                const act = () => this.toggle(button.dataset.toggle);
                this.clicks = this.clicks.then(act, act);
            }
        }

        // A block opens into its heads.
        open(event) {
            this.opened = event.target.value;
            this.focused = event.target.dataset.key;
            this.draw(this.answer);
        }

        // Arrow keys walk from block to block, or from head to head; only one of them takes part in the order of Tab.
        moved(event) {
            const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
            const group = event.target.matches("button[data-block]") ? "button[data-block]" : "button.asag-head";
            const blocks = [...this.place.querySelectorAll(group)];
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
            this.answer = answer;
            if (answer.told) {
                this.place.append(element("p", "asag-told", answer.told));
                return;
            }
            const notes = element("div", "asag-notes");
            notes.append(...this.notes(answer));
            const heads = window.asagHeads ? window.asagHeads(answer, this.opened) : null;
            this.place.append(this.words(answer), this.network(answer), ...(heads ? [heads] : []), notes);
            const all = [...this.place.querySelectorAll("[data-key]")];
            const kept = all.find((each) => each.dataset.key === this.focused);
            for (const group of ["button[data-block]", "button.asag-head"]) {
                const buttons = [...this.place.querySelectorAll(group)];
                buttons.forEach((each) => (each.tabIndex = -1));
                const first = buttons.includes(kept) ? kept : buttons[0];
                if (first) first.tabIndex = 0;
            }
            if (hadFocus && kept) kept.focus();
        }

        words(answer) {
            const row = element("div", "asag-words");
            row.setAttribute("role", "group");
            row.setAttribute("aria-label", "Ready-made choices of blocks");
            for (const word of WORDS) {
                const button = element("button", "asag-word", word);
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
            const whole = block.chosen === block.layers && !block.heads;
            const state = block.chosen === 0 ? "false" : whole ? "true" : "mixed";
            const part = block.heads ? `, heads: ${block.heads}` : "";
            const said = state === "mixed" ? `${block.chosen} weakened${part}` : STATES[state];
            const number = block.address.split(".")[1];
            const isUnet = block.address === "mid" || /^(in|out)\./.test(block.address);
            const button = element("button", "asag-block", isUnet ? block.address : number);
            button.type = "button";
            button.dataset.block = button.dataset.toggle = button.dataset.key = block.address;
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
            const known = answer.experimental ? `${answer.family} (experimental)` : answer.family;
            const auto = `${known}; auto is ${answer.auto}: ${answer.auto_reason}`;
            notes.push(this.legend(), element("p", "asag-family", auto));
            if (answer.checkpoint) notes.push(this.whose(answer));
            return notes;
        }

        // Each text is an element of its own, so that the host's localisation finds it.
        legend() {
            const legend = element("p", "asag-legend");
            legend.setAttribute("aria-hidden", "true");
            for (const [state, text] of Object.entries(STATES)) {
                legend.append(element("span", `asag-mark asag-${state}`, text));
            }
            return legend;
        }

        whose({checkpoint, loaded, chosen_checkpoint, chosen_problem}) {
            const whose = `These are the blocks of ${checkpoint}, the `;
            const loads = "It loads when you generate.";
            if (!loaded) return element("p", "asag-whose", `${whose}chosen checkpoint. ${loads}`);
            if (!chosen_checkpoint) return element("p", "asag-whose", `${whose}loaded checkpoint.`);
            const other = `You have chosen ${chosen_checkpoint}. ${loads} Its blocks may differ (${chosen_problem}).`;
            return element("p", "asag-told asag-whose", `${whose}loaded checkpoint. ${other}`);
        }
    }

    const maps = new WeakMap();

    setInterval(() => {
        for (const place of root().querySelectorAll(".asag-map")) {
            if (!maps.has(place)) maps.set(place, new BlockMap(place));
            maps.get(place).tick();
        }
    }, TICK_MS);
})();
