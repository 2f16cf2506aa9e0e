"""The start values of the accordion: those that users set under the labels of earlier versions; and its first line."""

import json
import re

import pytest

from asag import __version__
from asag.settings import options
from asag.webui import about, earlier_labels

OLD = "customscript/asag.py/{}/ASAG {}/value"


def test_start_values_under_earlier_labels_are_taken(tmp_path):
    """As AUTOMATIC1111 wrote them for labels such as "ASAG scale" (modules/ui_loadsave.py)."""
    file = tmp_path / "ui-config.json"
    kept = {
        OLD.format("txt2img", "scale"): 2.5,
        OLD.format("txt2img", "hires blocks"): "mid",
        OLD.format("img2img", "share work"): False,
        OLD.format("txt2img", "method"): "of another version",
        "customscript/asag.py/txt2img/ASAG/value": True,
        "customscript/asag.py/txt2img/ASAG scale/maximum": 30,
        "txt2img/ASAG preset/value": "Fast",
        "customscript/other.py/txt2img/ASAG scale/value": 9,
    }
    file.write_text(json.dumps(kept))
    assert earlier_labels.start_values(file, is_img2img=False) == {"scale": 2.5, "hires_blocks": "mid"}
    assert earlier_labels.start_values(file, is_img2img=True) == {"reuse": False}
    assert json.loads(file.read_text()) == kept


@pytest.mark.parametrize(("label", "kept", "unit"), [("Adaptive", True, "push"), ("ASAG adaptive", False, "paper")])
def test_the_start_value_of_a_setting_that_had_another_name_is_taken(tmp_path, label, kept, unit):
    file = tmp_path / "ui-config.json"
    file.write_text(json.dumps({f"customscript/asag.py/txt2img/{label}/value": kept}))
    assert earlier_labels.start_values(file, is_img2img=False) == {"unit": unit}


def test_the_latest_of_the_earlier_labels_holds(tmp_path):
    file = tmp_path / "ui-config.json"
    kept = {"ASAG adaptive": True, "ASAG unit": "cfg", "Adaptive": False}
    file.write_text(json.dumps({f"customscript/asag.py/img2img/{label}/value": each for label, each in kept.items()}))
    assert earlier_labels.start_values(file, is_img2img=True) == {"unit": "paper"}


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", "[" * 100_000])
def test_a_file_that_cannot_be_read_gives_nothing(tmp_path, text):
    file = tmp_path / "ui-config.json"
    if text is not None:
        file.write_text(text)
    assert earlier_labels.start_values(file, is_img2img=False) == {}


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/someone/sd-webui-asag",
        "https://github.com/someone/sd-webui-asag.git",
        "https://name:secret@github.com/someone/sd-webui-asag.git",
        "git@github.com:someone/sd-webui-asag.git",
    ],
)
def test_the_page_links_to_the_docs_of_the_clone(tmp_path, url):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text(f'[core]\n\tbare = false\n[remote "origin"]\n\turl = {url}\n')
    address = "https://github.com/someone/sd-webui-asag/blob/HEAD/docs/options.md"
    assert about.docs_address(tmp_path) == address


def test_without_a_known_site_there_is_no_link(tmp_path):
    assert about.docs_address(tmp_path) == ""
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text('[remote "origin"]\n\turl = /srv/github.com.git\n')
    assert about.docs_address(tmp_path) == ""


# Words of the papers and of the code that a user of a WebUI doesn't know.
STRANGE = ("lambda", "potential", "ldm", "sgm", "push", "perturb", "logit", "token")


@pytest.mark.parametrize("name", options())
def test_help_is_in_a_users_words(name):
    option = options()[name][1]
    assert "ASAG" not in option.label or name == "enabled"
    helps = [option.help, *(each.help for each in option.units.values())]
    for text in helps:
        # The names of choices are what they are.
        words = re.sub("|".join(f"{choice}:" for choice in option.choices) or "$", "", text.lower())
        assert [word for word in STRANGE if word in words] == []
        assert len(text) <= 180


def test_the_first_line_links_to_the_paper_and_to_the_docs_where_they_are_known(tmp_path, monkeypatch):
    monkeypatch.setattr(about, "ROOT", tmp_path)
    paper = '<a href="https://arxiv.org/abs/2511.07499" target="_blank" rel="noopener">Paper</a>'
    span = f'<span title="Version {__version__}">Adversarial Sinkhorn Attention Guidance</span>'
    rules = "{&quot;a&quot;: {}}"
    assert about.line({"a": {}}) == f'<div class="asag-about" data-fields="{rules}">{span} {paper}</div>'
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("url = https://github.com/a/b\n")
    docs = "https://github.com/a/b/blob/HEAD/docs/options.md"
    link = f'<a href="{docs}" target="_blank" rel="noopener">What each option does</a>'
    assert f"{span} {link} {paper}</div>" in about.line({"a": {}})
