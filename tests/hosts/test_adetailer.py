"""Whether ADetailer's inpainting is guided. Its settings, and what it leaves among the parameters, are doubles."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from asag.hosts.adetailer import NOTE, unguided_inpainting

ON = {"Size": "512x512", "ADetailer model": "face_yolov8n.pt"}
# The setting's value as ADetailer 25.3 has it.
NAMES = "dynamic_prompting,dynamic_thresholding,lora_block_weight,negpip,wildcard_recursive,wildcards"


@pytest.mark.parametrize(
    ("parameters", "settings", "note"),
    [
        (ON, {"ad_script_names": NAMES}, NOTE),
        ({"ADetailer model 2nd": "hand_yolov8n.pt"}, {"ad_script_names": NAMES}, NOTE),
        (ON, {}, NOTE),
        (ON, {"ad_script_names": f"{NAMES}, asag"}, ""),
        (ON, {"ad_script_names": NAMES, "ad_only_selected_scripts": False}, ""),
        ({"Size": "512x512"}, {"ad_script_names": NAMES}, ""),
    ],
)
def test_what_isnt_guided_is_noted(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str], settings: dict[str, Any], note: str
) -> None:
    monkeypatch.setitem(sys.modules, "modules.shared", SimpleNamespace(opts=SimpleNamespace(data=settings)))
    assert unguided_inpainting(SimpleNamespace(extra_generation_params=parameters)) == note
