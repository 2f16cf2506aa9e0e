"""Settings from outside: what is accepted, and errors that list every problem."""

import copy
import json
import math
import pickle
import re
from dataclasses import asdict, dataclass, fields
from types import SimpleNamespace

import pytest

from asag import __version__
from asag import option as option_module
from asag.hosts.generation import Refused
from asag.presets import Presets, read_shared
from asag.settings import AsagSettings, SettingsError, options
from asag.webui import api, infotext, xyz


def test_defaults_are_the_papers_and_off():
    settings = AsagSettings.from_mapping({})
    assert (settings.enabled, settings.scale, settings.iterations, settings.blocks) == (False, 1.5, 2, "auto")
    assert not settings.active


def test_every_default_is_within_its_own_bounds():
    assert AsagSettings.from_mapping(asdict(AsagSettings())) == AsagSettings()


# What infotexts, presets, API clients and saved defaults of the page rely on: the default, the bounds of the value and
# of the slider, and its step.
NUMBERS = {
    "scale": (1.5, 0, 100, 10, 0.1),
    "iterations": (2, 1, 50, 10, 1),
    "strength": (1.0, 0, 10, 3, 0.05),
    "start": (0.0, 0, 1, None, 0.01),
    "end": (1.0, 0, 1, None, 0.01),
    "rescale": (0.0, 0, 1, None, 0.01),
    "contrast": (1.0, 0, 1, None, 0.01),
    "blur": (10000.0, 0.1, 10000, None, 0.1),
    "hires_scale": (0.0, 0, 100, 10, 0.1),
    "tolerance": (0.0, 0, 10, 0.5, 0.001),
    "amount": (1.0, 0, 1, None, 0.01),
    "every": (1, 1, 4, None, 1),
}
OTHERS = {
    "enabled": (False, ()),
    "blocks": ("auto", ()),
    "method": ("asag", ("asag", "pag", "seg", "uniform", "similarity")),
    "schedule": ("constant", ("constant", "linear", "cosine", "bell")),
    "unit": ("paper", ("paper", "push", "cfg")),
    "hires": ("both", ("both", "first", "hires")),
    "hires_blocks": ("same", ()),
    "reuse": (True, ()),
    "figures": (False, ()),
}


def test_defaults_and_bounds_are_those_that_others_rely_on():
    known = options()
    assert {
        name: (field.default, option.minimum, option.maximum, option.slider_maximum, option.step)
        for name, (field, option) in known.items()
        if option.minimum is not None
    } == NUMBERS
    assert {
        name: (field.default, option.choices) for name, (field, option) in known.items() if option.minimum is None
    } == OTHERS
    assert all(type(field.default) is type((NUMBERS | OTHERS)[name][0]) for name, (field, _) in known.items())
    assert [name for name, (_, option) in known.items() if not option.changes_picture] == ["reuse", "figures"]
    assert {name: option.keywords for name, (_, option) in known.items() if option.keywords} == {
        "hires_blocks": ("same",)
    }
    for name, (field, option) in known.items():
        for bound in (option.minimum, option.maximum):
            assert bound is None or AsagSettings.from_mapping({name: bound}) == AsagSettings(**{name: bound})
        assert AsagSettings.from_mapping({name: str(field.default)}) == AsagSettings()


def test_every_option_has_a_label_and_a_help_text_of_its_own():
    known = [option for _, option in options().values()]
    assert len({option.label for option in known}) == len(known) == len(fields(AsagSettings))
    assert all(len(option.help) > 20 for option in known)


# What stood for the unit before it had that name.
BEFORE = [(True, "push"), (False, "paper"), ("True", "push"), ("false", "paper"), (" TRUE ", "push")]


@pytest.mark.parametrize(("written", "unit"), BEFORE)
def test_the_earlier_spelling_of_the_unit_is_read_everywhere(written, unit, tmp_path):
    expected = AsagSettings(enabled=True, unit=unit)
    assert AsagSettings.from_mapping({"enabled": True, "adaptive": written}) == expected
    assert AsagSettings.from_mapping({"enabled": True, "unit": written}) == expected
    # The API, by name and by position: the unit has the place of what it comes after.
    assert list(options())[11] == "unit"
    values = [getattr(AsagSettings(enabled=True), name) for name in options()]
    assert api.read_args([{"enabled": True, "adaptive": written}]) == expected
    assert api.read_args([*values[:11], written, *values[12:]]) == expected
    # A plot over the unit, in a request that has the earlier name.
    args = api.changed_args([{"enabled": True, "adaptive": written}], {"unit": "cfg"})
    assert api.read_args(args) == AsagSettings(enabled=True, unit="cfg")
    # Plots by the axis's earlier label.
    plot, p = PlotDouble(), cell_of([])
    xyz.add_axes(plot)
    (axis,) = [axis for axis in plot.axis_options if axis.label == "[ASAG] Adaptive"]
    axis.confirm(p, [written])
    axis.apply(p, written, [written])
    assert api.read_args(own_args(p)) == expected
    # Infotexts, in the API and in the page.
    text = {infotext.KEY: f"scale 1.5; adaptive {str(written).strip()}"}
    assert infotext.read(text) == expected
    assert infotext.pasted_value(text, "unit") == unit
    # The file of presets, and a preset as text.
    file = tmp_path / "presets.json"
    file.write_text(json.dumps({"Mine": {"scale": 1.5, "adaptive": written}}))
    assert Presets(file).get("Mine") == AsagSettings(unit=unit)
    assert Presets(file).notice == ""
    assert read_shared(f"Mine: scale 1.5; adaptive {str(written).strip()}") == ("Mine", AsagSettings(unit=unit))


def test_the_unit_and_its_earlier_name_together_are_an_error():
    with pytest.raises(SettingsError, match=r"adaptive: an earlier name of unit; allowed: unit alone$"):
        AsagSettings.from_mapping({"adaptive": True, "unit": "cfg"})
    with pytest.raises(SettingsError, match=r"unit: 'on'; allowed: paper, push, cfg"):
        AsagSettings.from_mapping({"adaptive": "on"})


def test_a_scale_is_shown_in_its_unit():
    for name in ("scale", "hires_scale"):
        option = options()[name][1]
        assert tuple(option.units) == options()["unit"][1].choices
        assert {unit: shown[:2] for unit, shown in option.units.items()} == {
            "paper": (option.slider_maximum, option.step),
            "push": (0.5, 0.005),
            "cfg": (2.0, 0.05),
        }


def test_text_is_read_as_plots_and_infotexts_write_it():
    settings = AsagSettings.from_mapping(
        {"enabled": "True", "scale": "3", "iterations": "4", "method": " PAG ", "blocks": " mid "}
    )
    assert settings == AsagSettings(enabled=True, scale=3.0, iterations=4, method="pag", blocks="mid")
    for text, value in ((" TRUE", True), ("false ", False), ("False", False)):
        assert AsagSettings.from_mapping({"reuse": text}) == AsagSettings(reuse=value)


BAD = {
    "enabled": ["yes", 1, None],
    "scale": [-0.1, 100.5, 10**400, math.nan, math.inf, "much", None, True, [1]],
    "blocks": ["blocks.1", "", 4, None],
    "iterations": [0, 51, 1.5, "two"],
    "strength": [-1, 11],
    "method": ["cfg", 3],
    "start": [-0.1, 1.1],
    "end": [2],
    "schedule": ["up"],
    "rescale": [1.01],
    "contrast": [-0.1, 1.5],
    "unit": ["on", 1, None, "adaptive"],
    "blur": [0],
    "hires": ["second"],
    "hires_scale": [-1],
    "hires_blocks": ["blocks.1", "different"],
    "tolerance": [-0.1, 10.5],
    "every": [0, 5, 1.5, "often"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_named_with_what_is_allowed(name, value):
    with pytest.raises(SettingsError) as caught:
        AsagSettings.from_mapping({name: value})
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{name}: ")
    assert "allowed: " in caught.value.problems[0]


@pytest.mark.parametrize(("start", "end"), [(0.8, 0.2), (0.5, 0.5)])
def test_an_empty_window_is_no_error_and_says_so(start, end):
    """A plot over Start and End has such cells."""
    settings = AsagSettings.from_mapping({"enabled": True, "start": start, "end": end})
    assert not settings.active
    assert settings.no_effect == f"start, {start}, isn't before end, {end}"
    assert AsagSettings(enabled=True).no_effect == ""


LONG = "x" * 1_000_000


@pytest.mark.parametrize("name", [*options(), LONG])
@pytest.mark.parametrize(
    "value",
    [LONG, [LONG], {"a": LONG}, [[1.5] * 100_000], 10**5000],
    ids=["text", "list", "object", "numbers", "digits"],
)
def test_what_is_long_is_cut_where_it_is_told(name, value):
    with pytest.raises(SettingsError) as caught:
        AsagSettings.from_mapping({name: value})
    assert len(str(caught.value)) < 600


def test_of_many_unknown_names_some_are_told():
    with pytest.raises(SettingsError) as caught:
        AsagSettings.from_mapping({f"name {number}": 1 for number in range(100_000)})
    assert "name 0, name 1" in str(caught.value)
    assert "and 99992 more: unknown; allowed: enabled" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_every_problem_is_listed():
    bad = {name: values[0] for name, values in BAD.items()} | {"sacle": 2}
    with pytest.raises(SettingsError) as caught:
        AsagSettings.from_mapping(bad)
    assert {problem.split(":")[0] for problem in caught.value.problems} == set(bad)
    assert "sacle: unknown; allowed: enabled, scale" in str(caught.value)


def test_the_error_says_the_same_when_it_comes_from_another_process():
    with pytest.raises(SettingsError) as caught:
        AsagSettings.from_mapping({"scale": -1, "sacle": 2})
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.problems) == (str(caught.value), caught.value.problems)


@pytest.mark.parametrize("change", [{"scale": 0}, {"start": 0.5, "end": 0.5}, {"enabled": False}])
def test_what_changes_nothing_is_not_active(change):
    assert AsagSettings(enabled=True).active
    assert AsagSettings(enabled=True, scale=0.0, hires_scale=2.0).active
    assert not AsagSettings.from_mapping({"enabled": True} | change).active


def test_hires_pass_has_its_own_scale_and_blocks():
    plain = AsagSettings(scale=2.0, blocks="mid")
    assert plain.in_pass(hires=False) == plain.in_pass(hires=True) == (2.0, "mid")
    own = AsagSettings(scale=2.0, blocks="mid", hires_scale=1.0, hires_blocks="out.3")
    assert (own.in_pass(False), own.in_pass(True)) == ((2.0, "mid"), (1.0, "out.3"))
    for which, guided in (("first", [False]), ("hires", [True]), ("both", [False, True])):
        assert [hires for hires in (False, True) if AsagSettings(hires=which).in_pass(hires)[0]] == guided


def test_schema_describes_every_setting_and_its_default():
    properties = api.schema()["properties"]
    assert list(properties) == [*options(), "adaptive"]
    assert properties["adaptive"] == {
        "type": "boolean",
        "title": "Unit",
        "description": "The earlier name of unit: true is push, false is paper. Give one of the two.",
        "deprecated": True,
    }
    assert properties["scale"] == properties["scale"] | {"type": "number", "default": 1.5, "maximum": 100.0}
    assert properties["iterations"]["type"] == "integer"
    assert properties["method"]["enum"] == ["asag", "pag", "seg", "uniform", "similarity"]


def test_the_schema_says_of_each_setting_what_it_is_and_what_is_allowed():
    found = api.schema()
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert (found["type"], found["additionalProperties"], found["version"]) == ("object", False, __version__)
    for name, kind, rest in (
        ("scale", "number", {"default": 1.5, "minimum": 0.0, "maximum": 100.0}),
        ("iterations", "integer", {"default": 2, "minimum": 1, "maximum": 50}),
        ("unit", "string", {"default": "paper", "enum": ["paper", "push", "cfg"]}),
        ("blocks", "string", {"default": "auto"}),
        ("hires", "string", {"default": "both", "enum": ["both", "first", "hires"]}),
    ):
        option = options()[name][1]
        texts = {"title": option.label, "description": option.help}
        assert found["properties"][name] == {"type": kind, **texts, **rest}


def test_a_value_for_every_option_may_be_given_by_position_and_no_more():
    values = [getattr(AsagSettings(), name) for name in options()]
    assert api.read_args(values) == AsagSettings()
    with pytest.raises(SettingsError, match=f"args: {len(values) + 1} values; allowed: at most {len(values)}"):
        api.read_args([*values, 1])


def test_arguments_with_single_settings_changed():
    changed = api.changed_args([{"enabled": True, "scale": 2}, 7], {"scale": 5.0})
    assert changed == [{"enabled": True, "scale": 5.0}, 7]
    values = [getattr(AsagSettings(scale=2.0), name) for name in options()]
    changed = api.changed_args(values, {"enabled": True, "iterations": 3})
    assert len(changed) == len(values)
    assert api.read_args(changed) == AsagSettings(True, 2.0, iterations=3)
    assert api.read_args(api.changed_args([False, 2.0], {"every": 2})) == AsagSettings(scale=2.0, every=2)
    # What was wrong stays wrong.
    for wrong in ([*values, 1], [{}, {}]):
        with pytest.raises(SettingsError, match=r"^ASAG settings: args: "):
            api.read_args(api.changed_args(wrong, {"scale": 5.0}))


class PlotDouble:
    """A double of the host's xyz_grid module: its list of axes and its AxisOption's arguments."""

    def __init__(self):
        self.axis_options = []

    class AxisOption:
        def __init__(self, label, type, apply, confirm=None, choices=None):
            self.label, self.type, self.apply, self.confirm, self.choices = label, type, apply, confirm, choices


def cell_of(args):
    """The double of a cell's `p`: ASAG has these arguments, between those of two other scripts."""
    scripts = [("Before", 1, 3), ("ASAG", 3, 3 + len(args)), ("After", 3 + len(args), 4 + len(args))]
    runner = SimpleNamespace(
        alwayson_scripts=[
            SimpleNamespace(title=lambda title=title: title, args_from=first, args_to=end)
            for title, first, end in scripts
        ]
    )
    return SimpleNamespace(scripts=runner, script_args=(9, "a", "b", *args, "c"))


def own_args(p):
    """What the host gives to ASAG's script (modules/scripts.py)."""
    assert p.script_args[:3] == (9, "a", "b")
    assert p.script_args[-1] == "c"
    return p.script_args[3:-1]


def test_axes_write_into_the_cells_own_arguments_and_are_added_once():
    defaults = [getattr(AsagSettings(), name) for name in options()]
    plot, p = PlotDouble(), cell_of(defaults)
    xyz.add_axes(plot)
    xyz.add_axes(plot)
    axes = {axis.label: axis for axis in plot.axis_options}
    assert len(axes) == len(plot.axis_options)
    assert {"[ASAG] Scale", "[ASAG] Hires blocks"} <= set(axes)
    assert not {"[ASAG] Enable ASAG", "[ASAG] Share work"} & set(axes)
    kinds = {"Scale": float, "Iterations": int, "Blocks": str, "Unit": str, "Adaptive": str, "Method": str}
    assert {label: axes[f"[ASAG] {label}"].type for label in kinds} == kinds
    assert axes["[ASAG] Unit"].choices() == ["paper", "push", "cfg"]
    assert axes["[ASAG] Adaptive"].choices() == ["True", "False"]
    assert plot.axis_options[-1].label == "[ASAG] Adaptive"  # so that the places of the others are the settings'
    assert axes["[ASAG] Scale"].choices is axes["[ASAG] Blocks"].choices is None
    axes["[ASAG] Iterations"].confirm(p, [2, 3])
    cell = copy.copy(p)
    axes["[ASAG] Scale"].apply(cell, 3.0, [3.0])
    other = copy.copy(cell)
    axes["[ASAG] Blocks"].apply(other, "mid, in.4", [])
    assert list(own_args(p)) == defaults
    assert api.read_args(own_args(cell)) == AsagSettings(enabled=True, scale=3.0)
    assert api.read_args(own_args(other)) == AsagSettings(enabled=True, scale=3.0, blocks="mid, in.4")
    assert axes["[ASAG] Method"].choices() == ["asag", "pag", "seg", "uniform", "similarity"]
    with pytest.raises(Refused, match="iterations: 0"):
        axes["[ASAG] Iterations"].confirm(p, [2, 0])


@pytest.mark.parametrize(("first", "other"), [("Start", "Start (noise)"), ("Unit", "Adaptive"), ("Scale", "Scale")])
def test_two_axes_of_one_setting_are_refused(first: str, other: str):
    """Else each cell would be of the last, and labelled with both."""
    plot, cell = PlotDouble(), cell_of([])
    xyz.add_axes(plot)
    axes = {axis.label: axis for axis in plot.axis_options}
    name = first.lower()
    axes[f"[ASAG] {first}"].apply(cell, "one", [])
    with pytest.raises(Refused, match=f"{name}: two on one axis and one on another; allowed: one axis of a setting"):
        axes[f"[ASAG] {other}"].apply(cell, "two", [])


@pytest.mark.parametrize("args", [[{"enabled": False, "scale": 2.0, "blocks": "mid"}], [False, 2.0, "mid"]])
def test_axes_go_to_the_workers_of_other_machines(args):
    """sd-webui-distributed sends each worker a request: JSON of the script's arguments, under its title."""
    filled = [*args, *[getattr(AsagSettings(), name) for name in options()][len(args) :]]
    plot, cell = PlotDouble(), cell_of(filled)
    xyz.add_axes(plot)
    axes = {axis.label: axis for axis in plot.axis_options}
    for label, value in (("Iterations", 3), ("End (noise)", "60%")):
        axes[f"[ASAG] {label}"].apply(cell, value, [value])
    scripts = cell.scripts.alwayson_scripts
    packed = {each.title(): {"args": list(cell.script_args[each.args_from : each.args_to])} for each in scripts}
    received = json.loads(json.dumps(packed))["ASAG"]["args"]
    assert len(received) == len(options())
    expected = AsagSettings(enabled=True, scale=2.0, blocks="mid", iterations=3, end="60%")
    assert api.read_args(received) == expected


def test_args_positional_or_as_an_object_anywhere():
    assert api.read_args([True, 2.0, "mid"]) == AsagSettings(enabled=True, scale=2.0, blocks="mid")
    given = {"enabled": True, "scale": 2}
    for args in ([given], [given, 7, "x"], [False, given]):
        assert api.read_args(args) == AsagSettings(enabled=True, scale=2.0)
    # As other extensions have it: the switch, then an object. What follows an object is the host's default.
    assert api.read_args([True, {"scale": 2}]) == AsagSettings(enabled=True, scale=2.0)
    assert api.read_args([False, {"scale": 2}]) == api.read_args([{"scale": 2}, True]) == AsagSettings(scale=2.0)
    assert api.read_args([]) == AsagSettings()
    with pytest.raises(SettingsError, match="args: 2 objects"):
        api.read_args([{}, {}])
    with pytest.raises(SettingsError, match="args: 40 values; allowed: at most"):
        api.read_args([1.0] * 40)


def test_labels_are_unique_for_they_are_keys_of_the_hosts_configuration():
    labels = [option.label for _, option in options().values()]
    assert len(set(labels)) == len(labels)
    assert all(option.help.endswith(".") or option.help.endswith(").") for _, option in options().values())


def test_infotext_is_compact_and_absence_switches_off():
    assert infotext.write(AsagSettings(enabled=True, blocks="mid, out.3")) == "scale 1.5; blocks mid, out.3"
    assert infotext.pasted_value({}, "enabled") is False
    assert infotext.pasted_value({}, "scale") is None
    assert infotext.pasted_value({"ASAG": "scale 3.0"}, "scale") == 3.0
    assert infotext.pasted_value({"ASAG": "scale 3.0"}, "method") == "asag"


UNREADABLE = [
    ("scale 999", "scale: '999'; allowed: a number from 0 to 100", {"enabled": True, "scale": None, "method": "asag"}),
    ("scale 4,0", "scale: '4,0'; allowed: a number from 0 to 100", {"enabled": True, "scale": None}),
    ("scale 4.0; sharpness 3", "sharpness: unknown; allowed: enabled, scale", {"enabled": True, "scale": 4.0}),
    ("scale 4.0; blocks d9999x", "blocks: 'd9999x'; allowed: auto", {"enabled": True, "scale": 4.0, "blocks": None}),
    # The page reads the text once for each of its fields.
    (
        "scale 4.0;" * 1001,
        r"ASAG: 'scale 4.0;.*'… \(10010 characters\); allowed: text of at most 10000 characters",
        {"enabled": False, "scale": None},
    ),
]


@pytest.mark.parametrize(("text", "problem", "taken"), UNREADABLE)
def test_an_infotext_that_cant_be_read_ends_a_request_and_in_the_page_the_rest_is_taken(text, problem, taken):
    api_parameters, page_parameters = {infotext.KEY: text}, {infotext.KEY: text}
    for name in taken:
        # modules/api/api.py: apply_infotext asks for the fields' values alone.
        with pytest.raises(Refused, match=f"^ASAG: the infotext can't be read: {problem}") as refused:
            infotext.pasted_value(api_parameters, name)
        assert refused.value.status_code == 422
    infotext.on_infotext_pasted("", page_parameters)
    assert {name: infotext.pasted_value(page_parameters, name) for name in taken} == taken
    assert re.search(problem, infotext.pasted_problems(page_parameters))
    assert page_parameters[infotext.KEY] == text


def test_a_pasted_text_sets_the_list_of_presets(tmp_path):
    """To the preset that it is; to none where it is none, or where it can't be read; and without ASAG to nothing."""
    presets = Presets(tmp_path / "presets.json")
    for text, preset in (
        ("scale 0.5; unit cfg", "Strong"),
        ("scale 4.25", "Custom"),
        ("scale 1.5; sharpness 3", "Custom"),
        ("scale 999", "Custom"),
        ("", None),
    ):
        assert infotext.pasted_preset({infotext.KEY: text}, presets) == preset
    assert infotext.pasted_preset({}, presets) is None
    presets.file.path.mkdir()
    assert infotext.pasted_preset({infotext.KEY: "scale 1.5"}, presets) is None


def test_what_changes_no_picture_is_neither_written_nor_pasted():
    settings = AsagSettings(enabled=True, scale=2.0, reuse=False, figures=True)
    assert infotext.write(settings) == "scale 2.0"
    assert infotext.pasted_value({infotext.KEY: "scale 2.0; reuse False"}, "reuse") is None
    assert infotext.pasted_value({infotext.KEY: "scale 2.0"}, "enabled") is True
    # Blanks and an empty part more are no mistake.
    assert infotext.read({infotext.KEY: " scale  2.0 ;; blocks mid, out.3; "}).blocks == "mid, out.3"


def test_of_an_infotext_that_can_be_read_nothing_is_told():
    for text in ("scale 4.0; blocks mid, out.3", ""):
        parameters = {infotext.KEY: text}
        infotext.on_infotext_pasted("", parameters)
        assert parameters == {infotext.KEY: text}
        assert infotext.pasted_problems(parameters) == ""


def test_a_text_that_is_no_list_of_blocks_is_taken_as_it_is():
    @dataclass
    class Named:
        title: str = option_module.option("x", "Title", "What it is called.")

    assert option_module.read_value(fields(Named)[0], " a cat, d-1 ") == "a cat, d-1"


def test_the_schema_says_what_attends_on_a_gpu(monkeypatch):
    monkeypatch.setenv("ASAG_IMPL", "streaming")
    assert api.schema()["$comment"] == "Attention on a GPU is computed by: streaming: ASAG_IMPL says so"
