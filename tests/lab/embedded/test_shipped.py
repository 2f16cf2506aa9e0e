"""The shipped model: size, the judge's accuracy, stock pipelines, and the quality gate on a small sample."""

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline

from asag.lab.embedded import drawings, quality, shipped
from asag.lab.embedded.architecture import new_scheduler
from asag.lab.embedded.classifier import accuracy, object_count, objects_right, present

SAMPLES = 48
# Measured with 512 samples: 0.936. Four standard errors of 48 samples lie below that.
GATE = 0.79


@pytest.fixture(scope="module")
def classifier():
    torch.set_num_threads(1)
    return shipped.load_classifier()


@pytest.fixture(scope="module")
def pipeline():
    torch.set_num_threads(1)
    return shipped.load_pipeline()


@pytest.fixture(scope="module")
def labels():
    captions = ["red disc, blue square", "white cross"]
    return torch.stack([drawings.parse_caption(caption) for caption in captions])


def test_the_model_folder_is_at_most_8_megabytes():
    assert sum(path.stat().st_size for path in shipped.MODEL.rglob("*") if path.is_file()) <= 8e6


def test_the_contact_sheet_is_small():
    assert (shipped.MODEL / "contact-sheet.png").stat().st_size < 300e3


def test_classifier_names_at_least_99_percent_of_fresh_drawings(classifier):
    assert accuracy(classifier, 2000, seed=77) >= 0.99


def test_classifier_ignores_the_order_but_nothing_else(classifier):
    drawn = quality.captions_for(200, seed=5)
    assert objects_right(classifier, drawn.images, drawn.labels.flip(1)).float().mean() > 0.98
    assert objects_right(classifier, drawn.images, drawn.labels.roll(1, 0)).float().mean() < 0.05


def test_classifier_notices_objects_drawn_twice_and_objects_too_many(classifier):
    """Crowds hold none to four objects, alike ones too; a caption names at most two, all different."""
    crowds = drawings.draw_crowds(1000, torch.Generator().manual_seed(8))
    assert objects_right(classifier, *crowds).float().mean() > 0.9
    doubled = (object_count(crowds.labels) == 3) & (present(crowds.labels).sum(1) == 2)
    pairs = present(crowds.labels[doubled]).nonzero()[:, 1].view(-1, 2)
    asked = torch.stack([pairs // len(drawings.COLOURS), pairs % len(drawings.COLOURS)], 2)
    assert len(asked) > 50
    assert objects_right(classifier, crowds.images[doubled], asked).float().mean() < 0.05


def test_drawings_themselves_measure_perfect_and_blank_pictures_do_not(classifier):
    drawn = quality.captions_for(200, seed=6)
    best = quality.measure(drawn.images, drawn, classifier)
    assert best["objects_right"] > 0.98
    assert best["contrast_ratio"] == 1
    worst = quality.measure(torch.zeros_like(drawn.images), drawn, classifier)
    assert worst["objects_right"] == 0
    assert worst["contrast_ratio"] == 0


def test_samples_hold_the_asked_objects_at_the_right_contrast(pipeline, classifier):
    figures = quality.evaluate(pipeline, classifier, SAMPLES, guidance_scale=2.0, steps=25, seed=2000)
    assert figures["objects_right"] >= GATE
    assert figures["contrast_ratio"] == pytest.approx(1, abs=0.08)


def test_same_seed_same_picture_and_the_caption_matters(pipeline, labels):
    first = shipped.sample(pipeline, labels, steps=3, seed=1)
    assert torch.equal(first, shipped.sample(pipeline, labels, steps=3, seed=1))
    assert not torch.allclose(first, shipped.sample(pipeline, labels.flip(0), steps=3, seed=1), atol=0.1)


def test_the_order_of_objects_in_a_caption_does_not_matter(pipeline, labels):
    first = shipped.sample(pipeline, labels[:1], steps=3, seed=1)
    swapped = shipped.sample(pipeline, labels[:1].flip(1), steps=3, seed=1)
    assert torch.allclose(first, swapped, atol=1e-3)


def test_the_stock_pag_pipeline_runs_and_perturbs(pipeline, labels):
    perturbed = shipped.load_pipeline(kind=StableDiffusionPAGPipeline, pag_applied_layers="mid")
    images = shipped.sample(perturbed, labels, steps=3, pag_scale=3.0)
    assert images.shape == (2, 3, drawings.SIZE, drawings.SIZE)
    assert not torch.allclose(images, shipped.sample(pipeline, labels, steps=3), atol=0.01)


def test_the_shipped_schedule_is_the_one_in_the_code_and_clips(pipeline):
    ours = new_scheduler()
    assert torch.equal(pipeline.scheduler.alphas_cumprod, ours.alphas_cumprod)
    assert pipeline.scheduler.config.clip_sample
    assert pipeline.scheduler.config.clip_sample_range == ours.config.clip_sample_range


def test_attention_is_where_users_perturb_it(pipeline):
    names = {name.split(".attentions")[0] for name in pipeline.unet.attn_processors}
    assert names == {"down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0"}


def test_embeddings_follow_the_caption():
    embeds = shipped.embed(["red disc, blue square", "red disc"])
    assert embeds.shape == (2, 3, 64)
    assert torch.equal(embeds[0, :2], embeds[1, :2])
    assert not torch.equal(embeds[0, 2], embeds[1, 2])
    assert shipped.null_embeds(2).shape == embeds.shape
    with pytest.raises(ValueError, match="unknown colour"):
        shipped.embed(["pink disc"])


def test_pictures_become_pil_images_of_the_asked_size():
    drawn = quality.captions_for(2, seed=0)
    first = shipped.to_pil(drawn.images, scale=3)[0]
    assert first.size == (96, 96)
    assert first.getpixel((0, 0)) == tuple(((drawn.images[0, :, 0, 0] + 1) * 127.5).round().int().tolist())


def test_contact_sheet_is_written(tmp_path):
    drawn = quality.captions_for(5, seed=0)
    quality.contact_sheet(drawn.images, drawn.labels, tmp_path / "sheet.png", columns=4, scale=2)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
