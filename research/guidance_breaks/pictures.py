"""Classifier guidance on the embedded model with fixed and adaptive λ: Table 2 of "When guidance breaks", in small.

The unconditional model (no caption) is guided by a classifier towards the objects of a caption, as the paper guides an
unconditional CIFAR-10 model by a ResNet-18 (Section 5.1). The reward r(x_t) is the guide's probability that the clean
picture predicted from x_t shows exactly the asked objects; its gradient is taken through the UNet. x_t are the model's
latents, (12, 16, 16), which are the picture's own 3072 values in another order, as many as CIFAR-10's.

The guide is trained here, from a seed. The shipped classifier judges: a guide that judged its own pictures would be
fooled by whatever fools it as a guide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor

from asag.guidance import scheduled_scale
from asag.lab.embedded import drawings, quality, shipped
from asag.lab.embedded.classifier import (
    Classifier,
    accuracy,
    object_count,
    objects_right,
    present,
    train_classifier,
)
from research.guidance_breaks import guides
from research.guidance_breaks.guides import Guide, Moment
from research.guidance_breaks.toy import with_error


@dataclass(frozen=True)
class Cell:
    """One setting. `method`: "unguided", "captions" (the model's own captions instead of guidance) or a name that
    `rule_of` knows; `scale`: λ, or λ₀; `clipped`: whether the predicted clean picture is held in ±1.1 at every step,
    as the model's own scheduler does; `bound`: M of clipping."""

    method: str
    scale: float = 0.0
    schedule: str = "constant"
    clipped: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-3
    bound: float = 1.0
    steps: int = 25


CELLS = (
    Cell("captions"),
    Cell("unguided"),
    # The paper's are 10 and 30; what collapses there doesn't here before much higher ones.
    *(Cell("fixed", scale) for scale in (1.0, 10.0, 30.0, 100.0, 300.0)),
    *(Cell("clip-gradient", scale) for scale in (30.0, 300.0)),
    *(Cell("adaptive", scale) for scale in (10.0, 30.0, 100.0, 300.0)),
    *(Cell("adaptive", scale, "bell") for scale in (30.0, 300.0)),
    Cell("fixed", 30.0, clipped=True),
)


def rule_of(cell: Cell) -> Guide:
    """A fresh rule for one run of `cell`. Raises ValueError for a method there isn't."""
    rules = {
        "fixed": guides.fixed,
        "adaptive": guides.adaptive(cell.momentum, cell.epsilon, math.prod(drawings.LATENT_SHAPE)),
        "clip-gradient": guides.clip_gradient(cell.bound),
    }
    if cell.method not in rules:
        raise ValueError(f"method: {cell.method!r}; allowed: captions, unguided, {', '.join(rules)}")
    return rules[cell.method]


def log_reward(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """log r, (B,): the classifier's log-probability that pictures (B,3,32,32) show the objects of labels (B,2,2), each
    once and no others. Its 24 outputs for pairs and its count are taken as independent."""
    pairs, counts = classifier(images).split([drawings.PAIRS, classifier.head.out_features - drawings.PAIRS], 1)
    signs = present(labels).to(pairs.dtype) * 2 - 1
    right_count = F.log_softmax(counts, 1).gather(1, object_count(labels)[:, None])
    return F.logsigmoid(signs * pairs).sum(1) + right_count[:, 0]


class Sampler:
    """DDIM with η = 1, as the paper's, on the embedded model, which a classifier may guide."""

    def __init__(self, unet: UNet2DConditionModel, guide: Classifier) -> None:
        self.unet, self.guide = unet.requires_grad_(False), guide.requires_grad_(False)

    def __call__(self, cell: Cell, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Latents (B,12,16,16) for labels (B,2,2), not clamped to pictures, and the mean length of the push over the
        steps, (B,). A seed's noise is the same in all cells of as many steps."""
        count, captions = len(labels), cell.method == "captions"
        scheduler = shipped.load_scheduler(clip_sample=cell.clipped)
        scheduler.set_timesteps(cell.steps)
        embeds = shipped.embed_labels(labels) if captions else shipped.null_embeds(count)
        rule = None if captions or cell.method == "unguided" else rule_of(cell)
        generator, pushes = Generator().manual_seed(seed), torch.zeros(count)
        x = torch.randn(count, *drawings.LATENT_SHAPE, generator=generator)
        for step, timestep in enumerate(scheduler.timesteps):
            signal = scheduler.alphas_cumprod[timestep].sqrt().item()
            scale = scheduled_scale(cell.scale, cell.schedule, step, cell.steps, 0.0, 1.0)
            # The first x_t of this model is noise alone (signal 0): the picture doesn't depend on it.
            if rule and signal > 0:
                velocity, push = self._guided(rule, x, timestep, embeds, labels, scale, signal)
                pushes += push / cell.steps
            else:
                with torch.no_grad():
                    velocity = self.unet(x, timestep, embeds).sample
            noise = torch.randn(x.shape, generator=generator)
            x = scheduler.step(velocity, timestep, x, eta=1.0, variance_noise=noise).prev_sample
        return x, pushes

    def _guided(
        self, rule: Guide, x: Tensor, timestep: Tensor, embeds: Tensor, labels: Tensor, scale: float, signal: float
    ) -> tuple[Tensor, Tensor]:
        """The model's prediction with the push G added to its score (Section 3.1), (B,12,16,16), and ‖G‖, (B,)."""
        noise = math.sqrt(1 - signal**2)
        x = x.detach().requires_grad_()
        velocity = self.unet(x, timestep, embeds).sample
        clean = signal * x - noise * velocity
        rewards = log_reward(self.guide, drawings.from_latents(clean), labels)
        (gradient,) = torch.autograd.grad(rewards.sum(), x)
        x, velocity = x.detach(), velocity.detach()
        score = -(noise * x + signal * velocity) / noise
        push = rule(Moment(x.flatten(1), score.flatten(1), gradient.flatten(1), scale, signal, 1.0))
        # v = (ε - √(1-a²) x) / a with ε = -√(1-a²) s: adding G to s takes √(1-a²)/a · G from v.
        return velocity - noise / signal * push.view_as(x), push.norm(dim=1)


def kernel_distance(found: Tensor, wanted: Tensor) -> float:
    """The squared maximum mean discrepancy of features (A, F) and (B, F) with the kernel (x·y/F + 1)³, unbiased, so
    that few samples don't make it larger (Bińkowski et al. 2018, arXiv 1801.01401, Eq. 4)."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T / a.shape[1] + 1) ** 3

    def apart(a: Tensor) -> Tensor:
        between = kernel(a, a)
        return (between.sum() - between.trace()) / (len(a) * (len(a) - 1))

    return (apart(found) + apart(wanted) - 2 * kernel(found, wanted).mean()).item()


def distance_within(features: Tensor, group: int) -> float:
    """The mean distance between two of the same `group` consecutive rows, of features (B, F)."""
    return torch.stack([torch.pdist(part).mean() for part in features.split(group)]).mean().item()


class Judge:
    """What is measured of pictures, against fresh drawings."""

    def __init__(self, classifier: Classifier, guide: Classifier, drawings: int = 1000) -> None:
        self.classifier, self.guide, self.unit = classifier, guide, 1.0
        drawn = quality.captions_for(drawings, 77).images
        # The kernel's constant presumes features of size 1.
        self.unit = self._features(drawn).square().mean().sqrt().item()
        self.wanted = self._features(drawn)
        self.contrast, self.apart = quality.contrast(drawn), torch.pdist(self.wanted).mean().item()

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        """(B,128), of an RMS of 1 over all drawings."""
        return torch.cat([self.classifier.features(part) for part in images.split(250)]) / self.unit

    def measures(self, latents: Tensor, labels: Tensor, group: int) -> dict[str, float]:
        """Of latents (B,12,16,16) for labels (B,2,2), `group` in a row with the same ones.

        objects_right, guide_right: share that shows exactly the asked objects, by the judge and by the guide;
        distance: `kernel_distance` of the judge's features to the drawings'; diversity: the mean distance between two
        samples' features, in parts of the drawings'; diversity_within: the same between samples with the same labels;
        contrast: in parts of the drawings'; diverged: share whose RMS is above 1.1 or no number. No picture has that:
        its values are in [-1, 1], and the model's own scheduler holds predictions in ±1.1.
        """
        size = latents.flatten(1).square().mean(1).sqrt()
        images = shipped.to_images(latents.nan_to_num())
        features = self._features(images)
        return {
            "objects_right": objects_right(self.classifier, images, labels).float().mean().item(),
            "guide_right": objects_right(self.guide, images, labels).float().mean().item(),
            "distance": kernel_distance(features, self.wanted),
            "diversity": torch.pdist(features).mean().item() / self.apart,
            "diversity_within": distance_within(features, group) / self.apart,
            "contrast": quality.contrast(images) / self.contrast,
            "diverged": (~(size <= 1.1)).float().mean().item(),
        }


@dataclass(frozen=True)
class Size:
    """How much is run: `captions` drawn captions a seed, `group` samples of each; the guide's training `steps`."""

    captions: int = 12
    group: int = 4
    guide_steps: int = 600


def trained_guide(steps: int) -> Classifier:
    """A classifier of the judge's kind, from another seed."""
    torch.manual_seed(1)
    return train_classifier(steps, Generator().manual_seed(1))


def run(seeds: Sequence[int], size: Size, cells: Sequence[Cell]) -> Iterator[tuple[dict[str, Any], Tensor | None]]:
    """A line for each cell, as dicts that JSON can hold, each with the first seed's pictures (B,3,32,32); before them
    a line on the classifiers, without. Metrics are [mean over seeds, standard error of that mean]; `each` has every
    seed's own, for paired differences.

    Raises ValueError for fewer than 2 seeds or samples of a caption.
    """
    if len(seeds) < 2 or size.group < 2:
        raise ValueError(f"seeds: {len(seeds)}, group: {size.group}; allowed: at least 2 of each")
    guide, classifier = trained_guide(size.guide_steps), shipped.load_classifier()
    rates = {"guide": accuracy(guide, 1000, 5), "judge": accuracy(classifier, 1000, 5)}
    yield {"experiment": "classifiers", "guide_steps": size.guide_steps, "drawings": 1000, "accuracy": rates}, None
    sampler, judge = Sampler(shipped.load_unet(), guide), Judge(classifier, guide)
    for cell in cells:
        found, shown = [], None
        for seed in seeds:
            labels = quality.captions_for(size.captions, 1000 + seed).labels.repeat_interleave(size.group, 0)
            latents, pushes = sampler(cell, labels, seed)
            found.append(judge.measures(latents, labels, size.group) | {"push": pushes.nanmedian().item()})
            shown = shipped.to_images(latents.nan_to_num()) if shown is None else shown
        each = {name: [float(f"{of_seed[name]:.6g}") for of_seed in found] for name in found[0]}
        metrics = {name: with_error(torch.tensor(values).double()) for name, values in each.items()}
        settings = {"seeds": list(seeds), "captions": size.captions, "group": size.group, "each": each}
        yield {"experiment": "pictures", **asdict(cell), **settings, "metrics": metrics}, shown
