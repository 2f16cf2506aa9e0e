"""What an editor shows of asag_guidance is what the settings say."""

import inspect
import re
from typing import get_args, get_type_hints

import pytest

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.settings import SettingsError, options

# A hires pass is a pipeline call of its own in diffusers.
EXPECTED = {name: (field, option) for name, (field, option) in options().items() if not name.startswith("hires")}


def keywords():
    given = inspect.signature(asag_guidance).parameters.values()
    return {each.name: each.default for each in given if each.kind is each.KEYWORD_ONLY}


def test_names_and_defaults_are_the_settings():
    assert keywords() == {name: field.default for name, (field, _) in EXPECTED.items()} | {"enabled": True}


def test_types_and_choices_are_the_settings():
    hints = get_type_hints(asag_guidance)
    for name, (field, option) in EXPECTED.items():
        allowed = (float, str) if option.noise else option.choices
        assert hints[name] is type(field.default) or get_args(hints[name]) == allowed != (), name


def test_each_value_is_explained():
    # From Python 3.13 on __doc__ itself isn't indented.
    explained = re.findall(r"^ {4}(\w+): ", inspect.getdoc(asag_guidance), re.MULTILINE)
    assert explained[: len(keywords()) + 1] == ["pipe", *keywords()]


def test_an_unknown_name_is_a_wrong_setting_like_any_other():
    with (
        pytest.raises(SettingsError, match=r"sharpness: unknown; .*scale: -1"),
        asag_guidance(None, sharpness=1, scale=-1),
    ):
        pass
