// The heads of a block, below the map: which block is open is chosen from a list, and its heads are buttons.
// asag.js draws them with the rest, and asks what a click makes of the list.
(function () {
    "use strict";

    const CLOSED = "";

    function element(tag, properties, ...children) {
        const made = Object.assign(document.createElement(tag), properties);
        made.append(...children);
        return made;
    }

    function button(toggle, label, state) {
        const made = element("button", {type: "button", className: "asag-block asag-head", title: toggle}, label);
        made.dataset.toggle = made.dataset.key = toggle;
        made.setAttribute("aria-label", toggle);
        made.setAttribute("aria-pressed", state);
        return made;
    }

    // The block whose heads are shown, and whose else could be; null where the numbers of heads aren't known.
    window.asagHeads = function (answer, opened) {
        const blocks = answer.blocks.filter((each) => each.each_head);
        if (!blocks.length) return null;
        const list = element("select", {className: "asag-open"}, new Option("\u2013", CLOSED));
        list.dataset.key = "open";
        list.append(...blocks.map((each) => new Option(each.address, each.address)));
        const block = blocks.find((each) => each.address === opened);
        list.value = block ? opened : CLOSED;
        const row = element("div", {className: "asag-heads"}, element("label", {}, "Heads of block ", list));
        if (!block) return row;
        const heads = element("div", {className: "asag-part asag-rungs"});
        heads.setAttribute("role", "group");
        heads.setAttribute("aria-label", `Heads of ${opened}`);
        heads.append(...block.each_head.map((state, number) => button(`${opened}:h${number}`, `h${number}`, state)));
        heads.append(button(`${opened}:aligned`, "aligned", String(block.heads === "aligned")));
        row.append(heads);
        return row;
    };
})();
