"""A folder laid out as the two npm packages are, with small drawn pictures in place of the renderings."""

import json
from pathlib import Path

from PIL import Image, ImageDraw

from asag.lab.renderings.names import NAMES, PICTURES

GROUPS = ["smileys & emotion", "people & body", "components", "animals & nature"]
SYMBOLS, FLAGS = 8, 9
RGB = {"red": (230, 30, 30), "blue": (30, 60, 230), "green": (20, 180, 60)}
SHAPES = ("circle", "square", "heart")


def entry(code, label, group, **more):
    return {"hexcode": code, "label": label, "group": group, "subgroup": 0, **more}


def entries():
    """Nine coloured shapes, a half-and-half face that has a mirror image, and what has to be left out."""
    found = [
        entry(f"1F{i:03X}", f"{colour} {shape}", SYMBOLS)
        for i, (colour, shape) in enumerate((colour, shape) for colour in RGB for shape in SHAPES)
    ]
    face = entry("1F600-FE0F", "Grinning Face", 0, skins=[entry("1F600-1F3FB", "grinning face: light skin tone", 0)])
    others = [entry("1F1E6-1F1E8", "flag: Ascension Island", FLAGS), entry("1F3FB", "light skin tone", 2)]
    return [*found, face, *others, {"hexcode": "1F1E6", "label": "regional indicator A"}]


def write(folder: Path) -> Path:
    (folder / PICTURES).mkdir(parents=True)
    (folder / NAMES).mkdir(parents=True)
    (folder / NAMES / "data.json").write_text(json.dumps(entries()))
    orders = [*range(len(GROUPS)), SYMBOLS, FLAGS]
    groups = [
        {"order": order, "message": name} for order, name in zip(orders, [*GROUPS, "symbols", "flags"], strict=True)
    ]
    messages = {"groups": groups, "subgroups": [{"order": 0, "message": "plain"}]}
    (folder / NAMES / "messages.json").write_text(json.dumps(messages))
    for each in entries():
        for one in (each, *each.get("skins", [])):
            draw(one["label"].lower()).save(folder / PICTURES / f"{one['hexcode'].lower()}.webp", lossless=True)
    # Some files lie there twice, with and without the code that asks for a colour picture.
    draw("red circle").save(folder / PICTURES / "1f000-fe0f.webp", lossless=True)
    return folder


def draw(label: str) -> Image.Image:
    picture = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    colour, _, shape = label.partition(" ")
    if colour not in RGB:
        pen.rectangle((0, 0, 127, 255), fill=(255, 0, 0, 255))
        pen.rectangle((128, 0, 255, 255), fill=(0, 0, 255, 255))
    elif shape == "circle":
        pen.ellipse((32, 32, 224, 224), fill=RGB[colour])
    elif shape == "square":
        pen.rectangle((0, 0, 255, 255), fill=RGB[colour])
    else:
        pen.polygon(((128, 240), (20, 60), (236, 60)), fill=RGB[colour])
    return picture
