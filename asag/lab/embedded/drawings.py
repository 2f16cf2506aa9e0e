"""Drawn scenes: 32x32 pictures of one or two flat shapes on a softly graded background.

They are the only training data of the embedded model, so every picture can be redrawn from a seed and
every picture's content is known exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

SIZE = 32
SHAPES = ("disc", "square", "triangle", "cross")
COLOURS = ("red", "yellow", "green", "blue", "magenta", "white")
NO_SHAPE, NO_COLOUR = len(SHAPES), len(COLOURS)
PAIRS = len(SHAPES) * len(COLOURS)
LATENT_SHAPE = (12, SIZE // 2, SIZE // 2)

_RGB = torch.tensor(
    [
        [0.92, 0.12, 0.12],
        [0.97, 0.88, 0.10],
        [0.10, 0.78, 0.20],
        [0.10, 0.25, 0.95],
        [0.90, 0.15, 0.90],
        [0.98, 0.98, 0.98],
    ]
)
_MARGIN, _GAP = 1.0, 1.5  # pixels kept free at the border and between two objects
_RANDOM_NUMBERS = 18  # uniform numbers that one picture is drawn from
_TRIES = 12  # places tried for an object of a crowd before it is left out


class Scenes(NamedTuple):
    """A batch of drawings: images (B,3,32,32) float32 in [-1,1]; labels (B,2,2) int64, see `labels`.

    labels[b, i] is (shape, colour) of object i; (NO_SHAPE, NO_COLOUR) where there is no second object.
    The two objects of a picture never share both shape and colour.
    """

    images: torch.Tensor
    labels: torch.Tensor


def draw(count: int, generator: torch.Generator) -> Scenes:
    """`count` random scenes, a function of the generator's state alone (two objects in two of three)."""
    device = generator.device
    u = torch.rand(count, _RANDOM_NUMBERS, generator=generator, device=device)
    two = u[:, 0] < 2 / 3
    first = (u[:, 1] * PAIRS).long()
    second = (first + 1 + (u[:, 2] * (PAIRS - 1)).long()) % PAIRS
    pairs = torch.stack([first, second], 1)
    labels = torch.stack([pairs // len(COLOURS), pairs % len(COLOURS)], 2)
    nothing = torch.tensor([NO_SHAPE, NO_COLOUR], device=device)
    labels[:, 1] = torch.where(two[:, None], labels[:, 1], nothing)
    return Scenes(_arrange(labels, two, u), labels)


def redraw(labels: torch.Tensor, generator: torch.Generator) -> Scenes:
    """Other scenes with the objects of labels (B,2,2)."""
    u = torch.rand(len(labels), _RANDOM_NUMBERS, generator=generator, device=generator.device)
    return Scenes(_arrange(labels, labels[:, 1, 0] != NO_SHAPE, u), labels)


def _arrange(labels: torch.Tensor, two: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Pictures (B,3,32,32) of labels (B,2,2), which name two objects or one, placed by random numbers."""
    centres, radii = _layout(two, u[:, 3:9])
    return _paint(_background(u[:, 9:16]), labels, centres, radii, u[:, 16:18])


def draw_crowds(count: int, generator: torch.Generator) -> Scenes:
    """Scenes with labels (B,4,2): none to four objects anywhere, alike ones too.

    Only the classifier learns from these: a model's mistakes include objects too many or drawn twice.
    """
    device = generator.device
    u = torch.rand(count, 4, 5 + 2 * _TRIES, generator=generator, device=device)
    pairs = (u[:, :, 0] * PAIRS).long()
    # Often the object before once more, as doubled objects are the commonest mistake.
    repeated = u[:, 1:, 1] < 0.4
    for i in range(1, 4):
        pairs[:, i] = torch.where(repeated[:, i - 1], pairs[:, i - 1], pairs[:, i])
    radii = 4.5 + 3 * u[:, :, 2]
    tries = (
        _MARGIN
        + radii[:, :, None, None]
        + u[:, :, 5:].unflatten(2, (_TRIES, 2)) * (SIZE - 2 * _MARGIN - 2 * radii[:, :, None, None])
    )
    centres, there = tries[:, :, 0].clone(), u[:, :, 3] < 0.8
    for i in range(1, 4):
        reach = (radii[:, :i] + radii[:, i, None]) * there[:, :i]
        free = (torch.cdist(tries[:, i], centres[:, :i]) > reach[:, None]).all(2)
        centres[:, i] = tries[torch.arange(count, device=device), i, free.int().argmax(1)]
        there[:, i] &= free.any(1)
    labels = torch.stack([pairs // len(COLOURS), pairs % len(COLOURS)], 2)
    labels = torch.where(there[:, :, None], labels, torch.tensor([NO_SHAPE, NO_COLOUR], device=device))
    background = _background(torch.rand(count, 7, generator=generator, device=device))
    return Scenes(_paint(background, labels, centres, radii, u[:, :, 4]), labels)


def _paint(
    image: torch.Tensor, labels: torch.Tensor, centres: torch.Tensor, radii: torch.Tensor, tone: torch.Tensor
) -> torch.Tensor:
    """Background (B,3,32,32) in [0,1] and N objects per picture -> images in [-1,1]; tone (B,N) in [0,1]."""
    shade = 0.92 + 0.08 * tone  # a slight change of brightness, so a colour is not one exact value
    for i in range(labels.shape[1]):
        cover = _coverage(labels[:, i, 0], centres[:, i], radii[:, i])[:, None]
        rgb = _RGB.to(image.device)[labels[:, i, 1].clamp(max=NO_COLOUR - 1)] * shade[:, i, None]
        image = image + cover * (rgb[:, :, None, None] - image)
    return image * 2 - 1


def _layout(two: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres (B,2,2) as x,y and radii (B,2) in pixels; pairs lie side by side or one above the other.

    Placing along an axis with the slack that is left needs no rejection, so it vectorises.
    """
    radii = torch.where(two[:, None], 6 + u[:, :2], 6.5 + 2.5 * u[:, :2])
    free = SIZE - 2 * _MARGIN - 2 * radii.sum(1) - _GAP
    start = u[:, 2] * free
    along_0 = _MARGIN + radii[:, 0] + start
    along_1 = along_0 + radii.sum(1) + _GAP + u[:, 3] * (free - start)
    along = torch.stack([along_0, along_1], 1)
    across = _MARGIN + radii + u[:, 4:6] * (SIZE - 2 * _MARGIN - 2 * radii)
    alone = (_MARGIN + radii[:, 0] + u[:, 2] * (SIZE - 2 * _MARGIN - 2 * radii[:, 0]))[:, None]
    along = torch.where(two[:, None], along, alone)
    # The low digits of a number already used decide the axis and which object comes first.
    coin = (u[:, 3] * 1024).long() % 4
    along = torch.where((coin // 2 == 1)[:, None] & two[:, None], SIZE - along, along)
    upright = (coin % 2 == 1)[:, None, None]
    centres = torch.stack([along, across], 2)
    return torch.where(upright, centres.flip(2), centres), radii


def _background(u: torch.Tensor) -> torch.Tensor:
    """(B,3,32,32) in [0,1]: a dim, nearly grey tone that changes linearly in a random direction."""
    tone = 0.12 + 0.30 * u[:, :1] + 0.10 * (u[:, 1:4] - 0.5)
    angle = 2 * torch.pi * u[:, 4]
    grid = (torch.arange(SIZE, device=u.device) + 0.5) / SIZE * 2 - 1
    ramp = angle.cos()[:, None, None] * grid[None, None, :] + angle.sin()[:, None, None] * grid[None, :, None]
    strength = 0.10 * u[:, 5:6] * torch.stack([torch.ones_like(u[:, 6]), 0.6 + 0.4 * u[:, 6], u[:, 6]], 1)
    return (tone[:, :, None, None] + strength[:, :, None, None] * ramp[:, None]).clamp(0, 1)


def _coverage(shape: torch.Tensor, centre: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """(B,32,32) in [0,1]: how much of each pixel the object covers, from its signed distance in pixels."""
    grid = torch.arange(SIZE, device=centre.device) + 0.5
    x = (grid[None, None, :] - centre[:, 0, None, None]).expand(-1, SIZE, -1)
    y = (grid[None, :, None] - centre[:, 1, None, None]).expand(-1, -1, SIZE)
    r = radius[:, None, None]

    def box(half_x: torch.Tensor, half_y: torch.Tensor) -> torch.Tensor:
        return torch.maximum(x.abs() - half_x, y.abs() - half_y)

    disc = (x * x + y * y).sqrt() - r
    square = box(0.88 * r, 0.88 * r)
    # Apex up: the base lies at +0.85 r and the flanks have the slope 1.85 r : r.
    triangle = torch.maximum(y - 0.85 * r, (1.85 * x.abs() - (y + r)) / (1 + 1.85**2) ** 0.5)
    cross = torch.minimum(box(r, 0.34 * r), box(0.34 * r, r))
    distance = torch.stack([disc, square, triangle, cross, torch.full_like(disc, 1e3)], 1)
    index = shape[:, None, None, None].expand(-1, 1, SIZE, SIZE)
    return (0.5 - distance.gather(1, index)[:, 0]).clamp(0, 1)


def parse_caption(caption: str) -> torch.Tensor:
    """Labels (2,2) int64 of a caption such as 'red disc, blue square'; ValueError says what is wrong."""
    phrases = [phrase.split() for phrase in caption.lower().split(",")]
    if not 1 <= len(phrases) <= 2:
        raise ValueError(f"one or two objects expected, found {len(phrases)}: {caption!r}")
    rows = []
    for words in phrases:
        if len(words) != 2:
            raise ValueError(f"an object is '<colour> <shape>', not {' '.join(words)!r}: {caption!r}")
        if words[0] not in COLOURS:
            raise ValueError(f"unknown colour {words[0]!r}; known: {', '.join(COLOURS)}")
        if words[1] not in SHAPES:
            raise ValueError(f"unknown shape {words[1]!r}; known: {', '.join(SHAPES)}")
        rows.append([SHAPES.index(words[1]), COLOURS.index(words[0])])
    if len(rows) == 2 and rows[0] == rows[1]:
        raise ValueError(f"the two objects must differ: {caption!r}")
    return torch.tensor(rows + [[NO_SHAPE, NO_COLOUR]] * (2 - len(rows)))


def caption(labels: torch.Tensor) -> str:
    """The caption of labels (2,2); the inverse of `parse_caption`."""
    return ", ".join(f"{COLOURS[c]} {SHAPES[s]}" for s, c in labels.tolist() if s != NO_SHAPE)


def pair_index(labels: torch.Tensor) -> torch.Tensor:
    """labels (...,2) -> (...) int64 in 0..PAIRS, shape * colours + colour; PAIRS means 'nothing'."""
    index = labels[..., 0] * len(COLOURS) + labels[..., 1]
    return torch.where(labels[..., 0] == NO_SHAPE, PAIRS, index)


def to_latents(images: torch.Tensor) -> torch.Tensor:
    """(B,3,32,32) -> (B,12,16,16): each 2x2 block of pixels becomes channels; nothing is lost."""
    return F.pixel_unshuffle(images, 2)


def from_latents(latents: torch.Tensor) -> torch.Tensor:
    """(B,12,16,16) -> (B,3,32,32), the inverse of `to_latents`."""
    return F.pixel_shuffle(latents, 2)
