"""Prompts, methods and seeds as the user gives them, and what is wrong with them named."""

from __future__ import annotations

from pathlib import Path

import pytest

from asag.lab.evaluation.plan import EvaluationError, Item, read_methods, read_prompts, read_seeds
from asag.settings import SettingsError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "a cat\n\n two dogs \n"),
        ("a.jsonl", '{"caption": "a cat", "id": 3}\n\n{"prompt": "two dogs"}\n'),
        ("a.csv", 'id,caption\n1,a cat\n2,"two dogs"\n'),
    ],
)
def test_prompts_come_from_lines_jsonl_and_csv(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_prompts(tmp_path / name) == ["a cat", "two dogs"]
    assert read_prompts(tmp_path / name, limit=1) == ["a cat"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n", "has none; allowed: at least one"),
        ("a.jsonl", '{"text": "a cat"}', r"line 1: \{'text': 'a cat'\}; allowed: text as caption or prompt"),
        ("a.jsonl", "a cat", "line 1: .*; allowed: a JSON object"),
        ("a.csv", "id,name\n1,a cat\n", "row: .*; allowed: text as caption or prompt"),
    ],
)
def test_files_without_prompts_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read_prompts(tmp_path / name)
    with pytest.raises(EvaluationError, match=r"none\.txt"):
        read_prompts(tmp_path / "none.txt")


def test_methods_and_seeds_are_read() -> None:
    methods = read_methods("cfg, pag:3,asag")
    assert [(each.name, each.settings) for each in methods] == [
        ("cfg", None),
        ("pag-3", {"method": "pag", "scale": "3"}),
        ("asag", {"method": "asag"}),
    ]
    assert [each.settings for each in read_methods('{"cfg": {}, "late": {"blocks": "late"}}')] == [
        None,
        {"blocks": "late"},
    ]
    assert read_seeds("4,0-2") == [4, 0, 1, 2]
    for text in ("cgf", "pag:3,pag:3", '{"a/b": {}}', '{"a": 3}', "{", "pag:3,PAG:3"):
        with pytest.raises(EvaluationError, match="methods: "):
            read_methods(text)
    for text in ("asag:x", '{"a": {"hires": "both"}}', '{"a": {"figures": true}}'):
        with pytest.raises(SettingsError, match="allowed: "):
            read_methods(text)
    for text in ("", "a", "-1", "3-1", "0,0"):
        with pytest.raises(EvaluationError, match="seeds: "):
            read_seeds(text)


def test_noise_is_that_of_prompt_and_seed_alone() -> None:
    assert Item(0, "a cat", 1).noise_seed == Item(9, "a cat", 1).noise_seed
    different = {Item(0, prompt, seed).noise_seed for prompt in ("a cat", "a dog") for seed in (0, 1)}
    assert len(different) == 4
