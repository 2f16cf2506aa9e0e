"""Choosing from gradio's dropdowns in a browser."""

from __future__ import annotations

from playwright.sync_api import Page, TimeoutError

TRIES, TRY = 12, 10_000  # TRY in milliseconds: one click may take seconds on a busy machine


def choose(page: Page, dropdown: str, name: str) -> None:
    """Choose from a dropdown of ASAG, by the CSS of its component. Its list is opened once: it keeps all its entries
    while it is open."""
    page.click(f"{dropdown} input")
    page.click(f'{dropdown} [data-testid="dropdown-option"][aria-label="{name}"]')


def choose_of_host(page: Page, dropdown: str, name: str, beginning: bool = False) -> None:
    """Choose from a dropdown of a host, by the CSS of its component and the entry's name, or by the `beginning` of it.

    gradio 4 filters a list that is open by what is chosen when an answer of the server to an earlier change arrives.
    Then the list is opened again.
    """
    component = page.locator(dropdown).first
    field = component.locator("input")
    option = component.locator(f'[data-testid="dropdown-option"][aria-label{"^" if beginning else ""}="{name}"]')
    for _ in range(TRIES):
        field.click()
        try:
            option.click(timeout=TRY)
            return
        except TimeoutError:
            field.blur()
    raise AssertionError(f"{name} isn't in the list of {dropdown}")
