"""Which renderings are read, and which names are held out."""

import hashlib
from collections import Counter

import pytest

from asag.lab.renderings.names import Rendering, held_out, read, words

NAMES = [
    f"{colour} {shape}" for colour in ("red", "blue", "green", "white") for shape in ("heart", "disc", "car", "cat")
]


def test_each_name_is_read_once_without_flags_skin_tones_and_components(renderings):
    labels = [rendering.name for rendering in renderings]
    assert len(labels) == len(set(labels)) == 10
    assert labels[:2] == ["red circle", "red square"]
    assert labels[-1] == "grinning face"
    assert (renderings[0].group, renderings[0].subgroup) == ("symbols", "plain")
    assert renderings[-1].group == "smileys & emotion"
    assert renderings[0].path.name == "1f000-fe0f.webp"


def test_a_folder_without_the_packages_says_how_to_get_them(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"there is no node_modules.*npm install @lobehub/fluent-emoji-3d@1\.1\.0"
    ):
        read(tmp_path)


def test_held_out_words_stay_in_two_other_names():
    held = held_out(NAMES, 5)
    left = Counter(word for name in NAMES if name not in held for word in words(name))
    assert len(held) == 5
    assert all(left[word] >= 2 for name in held for word in words(name))


def test_held_out_names_come_by_their_hash_and_not_by_their_order():
    first = min(NAMES, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert held_out(NAMES, 1) == {first}
    assert held_out(NAMES[::-1], 7) == held_out(NAMES, 7)


def test_names_of_one_word_or_of_rare_words_are_kept():
    assert held_out(["heart", "heart", "heart", "red heart", "blue heart"], 9) == frozenset()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("smiling cat with heart-eyes", ["smiling", "cat", "with", "heart", "eyes"]),
        ("woman’s hat", ["woman", "hat"]),
        ("eight o’clock", ["eight", "o’clock"]),
        ("eight o'clock", ["eight", "o’clock"]),
        ("keycap: #", ["keycap", "#"]),
        ("Japanese “bargain” button", ["japanese", "bargain", "button"]),
    ],
)
def test_words_of_a_name(name, found):
    assert words(name) == found


@pytest.mark.parametrize(
    ("name", "group", "subgroup", "mirrors", "names_colour"),
    [
        ("cat face", "animals & nature", "mammals", True, False),
        ("green apple", "food & drink", "fruit", True, True),
        ("left-facing fist", "people & body", "fingers", False, False),
        ("two o’clock", "travel & places", "time", False, False),
        ("ok button", "symbols", "alphanumeric symbols", False, False),
    ],
)
def test_what_may_be_mirrored_and_tinted(tmp_path, name, group, subgroup, mirrors, names_colour):
    rendering = Rendering(tmp_path, name, group, subgroup)
    assert (rendering.mirrors, rendering.names_colour) == (mirrors, names_colour)
