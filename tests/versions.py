"""The versions with which noxfile.py runs the core tests: what each WebUI pins, and the newest of all.

Read off the WebUIs' requirements and launch scripts in November 2026. numpy, pillow and fastapi are those of the
constraints: within a patch release of what the WebUIs pin.
"""

from __future__ import annotations

from dataclasses import dataclass

GRADIO_3, GRADIO_4 = "constraints-gradio3.txt", "constraints-gradio4.txt"


@dataclass(frozen=True)
class Versions:
    """A Python, what pip is asked for, and a file of constraints."""

    python: str
    packages: tuple[str, ...]
    constraints: str | None = None


COMBINATIONS = {
    "a1111": Versions("3.10", ("torch==2.1.2", "einops==0.4.1", "safetensors==0.4.2"), GRADIO_3),
    "forge": Versions("3.10", ("torch==2.3.1", "einops==0.4.1", "safetensors==0.4.2"), GRADIO_4),
    "reforge": Versions("3.12", ("torch==2.9.0", "einops==0.8.0", "safetensors==0.5.2"), GRADIO_3),
    "neo": Versions("3.13", ("torch==2.11.0", "einops==0.8.2", "safetensors==0.7.0"), GRADIO_4),
    "newest": Versions("3.14", ("torch", "einops", "safetensors")),
}
# What a WebUI has besides, what tests are written with, and what the UNet of AUTOMATIC1111 imports. audioop-lts is for
# gradio 4, as in requirements-playground.txt.
AUDIO = 'audioop-lts; python_version >= "3.13"'
PACKAGES = ("numpy", "gradio", "fastapi", "httpx", "pillow", "filelock", "matplotlib", AUDIO)
TESTS = ("pytest", "pytest-timeout", "hypothesis", "POT", "omegaconf")
# That UNet; its own pins are years old.
WITHOUT_DEPENDENCIES = ("stable-diffusion-sdkit",)
