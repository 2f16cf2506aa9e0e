"""Choosing from gradio's dropdowns in a browser."""

from __future__ import annotations

from playwright.sync_api import Page, TimeoutError

TRIES, TRY = 12, 10_000  # TRY in milliseconds: one click may take seconds on a busy machine


def choose(page: Page, dropdown: str, name: str) -> None:
    """Choose from a dropdown, by the CSS of its component.

    gradio filters a list that is open by what is chosen when an answer of the server to an earlier change arrives.
    Then the list is opened again.
    """
    field = page.locator(f"{dropdown} input")
    option = page.locator(f'{dropdown} [data-testid="dropdown-option"][aria-label="{name}"]')
    for _ in range(TRIES):
        field.click()
        try:
            option.click(timeout=TRY)
            return
        except TimeoutError:
            field.blur()
    raise AssertionError(f"{name} isn't in the list of {dropdown}")
