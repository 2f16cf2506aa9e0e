// The lists of the accordion's dropdowns. When an answer of the server brings an open list other entries or another
// value, gradio shows only the entries that contain the value's text. This has it show all of them again, before the
// page is drawn. Without this file such a list has to be closed and opened once more.
(function () {
    "use strict";

    // A second copy of the extension brings this file once more.
    if (window.asagLists) return;
    window.asagLists = true;

    const OPEN = ".wrap-inner.show_options, .wrap-inner.showOptions"; // in gradio 4 and in gradio 3

    let field = null; // the dropdown's that has the focus
    let typed = null; // by this text the user filters its list

    const observer = new MutationObserver(() => {
        if (field.value === typed || !field.closest(OPEN)) return;
        // gradio shows all entries when the field gets the focus. Where they are shown already, nothing changes.
        field.dispatchEvent(new FocusEvent("focus"));
    });

    document.addEventListener("focusin", (event) => {
        observer.disconnect();
        field = event.composedPath()[0]; // a host may have the page in a shadow
        typed = null;
        const component = field.matches?.(".wrap-inner input") && field.closest('[id*="asag_"].block');
        if (component) observer.observe(component, {childList: true, subtree: true});
    });

    function noteTyped(event) {
        if (event.composedPath()[0] === field) typed = field.value;
    }

    document.addEventListener("input", noteTyped, {capture: true}); // before gradio, which filters the list then
})();
