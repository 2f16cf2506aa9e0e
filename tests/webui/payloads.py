"""Requests that the tests send, and how their images are compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from .server import encode_image

# Random weights answer guidance weakly; this scale makes every difference plain.
STRONG = 8.0
# Too faint to be seen: an image that it changes was changed by something else, such as another random number.
FAINT = 1e-5
# Grey levels. Two images of the same thing computed in another order are at most one apart; the same computation twice
# gives the same bits on a CPU.
ROUNDING = 2
# With prefix reuse the perturbed rows run in batches of another size, and a strong scale multiplies what rounding does.
REUSE_ROUNDING = 4


def request(**changes: Any) -> dict[str, Any]:
    """A small txt2img request; `changes` are fields of it."""
    return {
        "prompt": "a cat on a chair",
        "negative_prompt": "blurry",
        "seed": 7,
        "steps": 3,
        "width": 128,
        "height": 128,
        "cfg_scale": 7,
        "sampler_name": "Euler",
        "scheduler": "Automatic",
        # Forge's hires fix fails in the API without it.
        "hr_additional_modules": ["Use same choices"],
        **changes,
    }


def asag(**settings: Any) -> dict[str, Any]:
    """The value of `alwayson_scripts` that guides: on and strong, unless `settings` say otherwise."""
    return {"ASAG": {"args": [{"enabled": True, "scale": STRONG, **settings}]}}


def largest_difference(one: np.ndarray, other: np.ndarray) -> int:
    """In grey levels, over all pixels and channels."""
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    """Bit-identical images."""
    assert largest_difference(one, other) == 0


def assert_differ(one: np.ndarray, other: np.ndarray) -> None:
    """More than rounding apart."""
    assert largest_difference(one, other) >= ROUNDING


def picture(width: int = 128, height: int = 128) -> np.ndarray:
    """An image to start from: two ramps and a bright rectangle."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([across, down, 255 - across], axis=-1)
    pixels[height // 4 : height // 2, width // 4 : 3 * width // 4] = 240
    return pixels.astype(np.uint8)


def image_request(**changes: Any) -> dict[str, Any]:
    """A small img2img request."""
    return request(**{"init_images": [encode_image(picture())], "denoising_strength": 0.75, "steps": 4, **changes})


def control_unit(module: str, model: str = "None", **changes: Any) -> dict[str, Any]:
    """The value of `alwayson_scripts` for one ControlNet unit."""
    unit = {"enabled": True, "module": module, "model": model, "image": encode_image(picture()), "weight": 1.0}
    return {"ControlNet": {"args": [{**unit, "save_detected_map": False, **changes}]}}
