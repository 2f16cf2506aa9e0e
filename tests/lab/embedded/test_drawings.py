"""The drawings: repeatable, labelled truly, and named by captions that can be read back."""

import pytest
import torch

from asag.lab.embedded import drawings, shipped
from asag.lab.embedded.classifier import objects_right


def _draw(count: int, seed: int) -> drawings.Scenes:
    return drawings.draw(count, torch.Generator().manual_seed(seed))


def test_same_seed_same_drawings_and_another_seed_others():
    first, again, other = _draw(32, 3), _draw(32, 3), _draw(32, 4)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


def test_images_have_the_promised_shape_and_range():
    drawn = _draw(300, 0)
    assert drawn.images.shape == (300, 3, drawings.SIZE, drawings.SIZE)
    assert drawn.images.dtype == torch.float32
    assert -1 <= drawn.images.min() < drawn.images.max() <= 1


def test_labels_cover_every_pair_and_two_objects_always_differ():
    labels = _draw(3000, 1).labels
    assert set(drawings.pair_index(labels[:, 0]).tolist()) == set(range(drawings.PAIRS))
    second = drawings.pair_index(labels[:, 1])
    assert set(second.tolist()) == set(range(drawings.PAIRS + 1))
    assert not (drawings.pair_index(labels[:, 0]) == second).any()
    assert 0.6 < (second < drawings.PAIRS).float().mean() < 0.73


@pytest.mark.parametrize("draw", [drawings.draw, drawings.draw_crowds])
def test_every_labelled_colour_is_painted_and_no_other(draw):
    """Counted by hand: pixels near each colour of the palette, present exactly where the label says so."""
    drawn = draw(400, torch.Generator().manual_seed(2))
    pixels = (drawn.images + 1) / 2
    near = (pixels[:, None] - drawings._RGB[None, :, :, None, None]).abs().amax(2) < 0.13
    seen = near.flatten(2).sum(2) > 10
    asked = torch.nn.functional.one_hot(drawn.labels[:, :, 1], drawings.NO_COLOUR + 1).sum(1)[:, :-1] > 0
    assert torch.equal(seen, asked)


def test_crowds_hold_none_to_four_objects_and_alike_ones():
    labels = drawings.draw_crowds(1000, torch.Generator().manual_seed(0)).labels
    assert set((labels[:, :, 0] != drawings.NO_SHAPE).sum(1).tolist()) == {0, 1, 2, 3, 4}
    pairs = drawings.pair_index(labels)
    assert 0.2 < ((pairs[:, 0] == pairs[:, 1]) & (pairs[:, 0] < drawings.PAIRS)).float().mean() < 0.5


def test_objects_stay_inside_the_picture_and_apart():
    two = torch.ones(2000, dtype=torch.bool)
    centres, radii = drawings._layout(two, torch.rand(2000, 6, generator=torch.Generator().manual_seed(0)))
    assert (centres - radii[..., None] >= 0.99).all()
    assert (centres + radii[..., None] <= drawings.SIZE - 0.99).all()
    apart = (centres[:, 0] - centres[:, 1]).abs().amax(1) - radii.sum(1)
    assert apart.min() > 1.4


def test_shapes_cover_what_geometry_says():
    radius = torch.full((4,), 9.0)
    cover = drawings._coverage(torch.arange(4), torch.full((4, 2), 16.0), radius).flatten(1).sum(1)
    expected = torch.tensor([3.1416, 1.76**2, 1.85, 2 * 2 * 0.68 - 0.68**2]) * 81
    assert torch.allclose(cover, expected, rtol=0.05)


@pytest.mark.parametrize("text", ["red disc", "blue square, white cross", "red disc, red square"])
def test_captions_round_trip(text):
    assert drawings.caption(drawings.parse_caption(text)) == text


def test_captions_of_drawings_are_read_back():
    for labels in _draw(100, 5).labels:
        assert torch.equal(drawings.parse_caption(drawings.caption(labels)), labels)


def test_captions_may_be_untidy():
    assert drawings.caption(drawings.parse_caption("  Red   DISC ,blue square")) == "red disc, blue square"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pink disc", "unknown colour 'pink'"),
        ("red hexagon", "unknown shape 'hexagon'"),
        ("disc", "an object is"),
        ("", "an object is"),
        ("red disc,", "an object is"),
        ("red disc, blue disc, green disc", "found 3"),
        ("red disc, red disc", "must differ"),
    ],
)
def test_a_wrong_caption_is_refused_with_a_reason(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        drawings.parse_caption(text)


def test_latents_hold_the_whole_picture():
    images = _draw(4, 6).images
    latents = drawings.to_latents(images)
    assert latents.shape == (4, *drawings.LATENT_SHAPE)
    assert torch.equal(drawings.from_latents(latents), images)


def test_redrawn_scenes_hold_the_same_objects_elsewhere():
    drawn = drawings.draw(300, torch.Generator().manual_seed(1))
    again = drawings.redraw(drawn.labels, torch.Generator().manual_seed(2))
    assert torch.equal(again.labels, drawn.labels)
    assert not torch.allclose(again.images, drawn.images, atol=0.5)
    assert objects_right(shipped.load_classifier(), again.images, drawn.labels).float().mean() > 0.98
