"""Contact sheets: pictures over their captions, nothing picked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from asag.lab.embedded.shipped import to_pil

# Names of all kinds that are known everywhere; the last four are held out of training.
CAPTIONS = (
    "red heart",
    "grinning squinting face",
    "cat face",
    "fire engine",
    "red apple",
    "sunflower",
    "house",
    "soccer ball",
    "green heart",
    "loudly crying face",
    "tiger face",
    "automobile",
    "banana",
    "cactus",
    "airplane",
    "guitar",
    "blue circle",
    "pile of poo",
    "octopus",
    "rocket",
    "hamburger",
    "mushroom",
    "balloon",
    "key",
    "smiling face with sunglasses",
    "police officer",
    "woman astronaut",
    "thumbs up",
    "grinning cat",
    "blue heart",
    "woman firefighter",
    "purple square",
)
_TEXT = 24  # pixels of two lines


def contact_sheet(
    images: torch.Tensor, texts: Sequence[str], path: Path, wrong: Sequence[bool] | None = None, columns: int = 8
) -> None:
    """A PNG of pictures (B,3,S,S) at twice their size, each over its caption; captions of `wrong` ones are red."""
    side = 2 * images.shape[-1]
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + _TEXT + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, picture in enumerate(to_pil(images, scale=2)):
        x, y = i % columns * (side + 4) + 2, i // columns * (side + _TEXT + 4) + 2
        sheet.paste(picture, (x, y))
        colour = "red" if wrong is not None and wrong[i] else "black"
        pen.multiline_text((x, y + side), _folded(texts[i]), fill=colour, spacing=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def _folded(text: str, width: int = 20) -> str:
    """Two lines at most, of characters that the small font has."""
    text = text.replace("’", "'").encode("ascii", "replace").decode()
    if len(text) <= width:
        return text
    cut = text.rfind(" ", 0, width)
    cut = cut if cut > 0 else width
    return f"{text[:cut]}\n{text[cut:].strip()[:width]}"
