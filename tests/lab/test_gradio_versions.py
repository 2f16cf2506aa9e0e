"""What the playground passes to gradio, by signatures of three versions. A browser shows 3.41 and 4.40 themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from asag.lab.gradio_versions import script_argument, style_argument


def load_3(fn: Any, inputs: Any = None, *, _js: Any = None) -> None: ...


def load_4(fn: Any, inputs: Any = None, *, js: Any = None) -> None: ...


def mount_4(app: Any, blocks: Any, path: str) -> None: ...


def mount_6(app: Any, blocks: Any, path: str, *, css: str | None = None) -> None: ...


@pytest.mark.parametrize(("load", "name"), [(load_3, "_js"), (load_4, "js")])
def test_scripts_go_where_events_take_them(load: Callable[..., None], name: str) -> None:
    assert script_argument(load) == name


@pytest.mark.parametrize(("mount", "by_the_page"), [(mount_4, True), (mount_6, False)])
def test_styles_go_to_the_page_or_to_what_mounts_it(mount: Callable[..., None], by_the_page: bool) -> None:
    styles = {"css": ".asag-map {}"}
    assert style_argument(mount, styles["css"], of_page=True) == (styles if by_the_page else {})
    assert style_argument(mount, styles["css"], of_page=False) == ({} if by_the_page else styles)
