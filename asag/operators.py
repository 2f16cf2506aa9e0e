"""What a chosen self-attention layer computes instead of SoftMax attention, plain and joint with text.

Every operator has one interface: `plain` for layers whose tokens are all image tokens (UNets), `joint` for layers
whose queries and keys are text and image tokens together (MMDiT). Tensors are (batch, heads, tokens, head_dim).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from asag.attention import adversarial_sinkhorn_attention, attention_rows, signed_scale, softmax_rows
from asag.attention_arguments import check_attention_inputs, check_options
from asag.blocks import Address
from asag.joint_parts import MaskCheck, text_attending, text_bias_of, text_of
from asag.kernel_choice import KERNELS, named_implementation
from asag.kernel_path import joint
from asag.precision import at_least_float32

METHODS = ("asag", "pag", "seg", "uniform", "similarity")

# SEG's official code takes any sigma above this for infinity.
INFINITE_SIGMA = 9999.0
JOINT_TILE_ELEMENTS = 1 << 24
# On a CPU copies that fit its cache; elsewhere enough heads at once to keep the device busy.
JOINT_CHUNK_ELEMENTS = {"cpu": 1 << 20}
DEVICE_CHUNK_ELEMENTS = 1 << 25


class Operator:
    """Base: a subclass supplies `plain` and `map_rows`; `joint` follows from `plain`. It is made anew for each run."""

    @cached_property
    def masks(self) -> MaskCheck:
        return MaskCheck()

    def at(self, address: Address) -> Operator:
        """The operator for one layer: the same for all, unless it keeps something of each."""
        return self

    def map_rows(self, query: Tensor, key: Tensor, chosen: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The rows of the map among image tokens that belong to the `chosen` queries (their numbers, int64, (rows,)).

        Returns (batch, heads, rows, keys), at least float32, each row summing to 1; times value it is `plain`'s rows.
        """
        raise NotImplementedError

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Perturbed attention among image tokens. `grid` is (height, width) of the tokens, row by row."""
        raise NotImplementedError

    def joint(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        image: slice,
        grid: tuple[int, int] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attention of a joint sequence in which only image→image attention is perturbed.

        `image` is where the image tokens lie; all others are text. Text queries are untouched. An image query keeps
        its SoftMax weights on the text keys; what it gave to image keys is spread as `plain` says. Both come from one
        SDPA call whose values are zero on image keys and that has one more value feature, 1 on image keys: its output
        is the mass on the image. `plain` is called with a few heads at a time: an operator that looks at all heads
        together has to have a `joint` of its own. `mask` is SDPA's, with four dimensions; it may hide text, but no
        image token from another (ValueError).
        """
        if (image.start, image.stop) == (0, query.shape[2]):
            self.masks.image_rows(mask, image)
            return self.plain(query, key, value, grid)
        image_mask = self.masks.image_rows(mask, image)
        out = text_attending(query, key, value, image, mask)
        # A few heads at a time, for what is padded are copies.
        elements = JOINT_CHUNK_ELEMENTS.get(query.device.type, DEVICE_CHUNK_ELEMENTS)
        step = max(elements // (key.shape[0] * key.shape[2] * (value.shape[3] + 8)), 1)
        for start in range(0, query.shape[1], step):
            heads = slice(start, start + step)
            head_mask = image_mask if image_mask is None or image_mask.shape[1] == 1 else image_mask[:, heads]
            self._joint_heads(query[:, heads], key[:, heads], value[:, heads], image, grid, head_mask, out[:, heads])
        return out

    def _joint_heads(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        image: slice,
        grid: tuple[int, int] | None,
        image_mask: Tensor | None,
        out: Tensor,
    ) -> None:
        """Fill the rows of `out` that belong to image queries; `image_mask` are the mask's rows for them."""
        text_value = F.pad(value, (0, 8))
        text_value[:, :, image] = 0
        text_value[:, :, image, value.shape[3]] = 1
        image_query = query[:, :, image]
        padded_query, padded_key = F.pad(image_query, (0, 8)), F.pad(key, (0, 8))
        scale = 1 / math.sqrt(query.shape[3])
        kept = F.scaled_dot_product_attention(padded_query, padded_key, text_value, attn_mask=image_mask, scale=scale)
        mass = kept[..., value.shape[3], None]
        spread = self.plain(image_query, key[:, :, image], value[:, :, image], grid)
        out[:, :, image] = kept[..., : value.shape[3]] + mass * spread


@dataclass(frozen=True)
class Sinkhorn(Operator):
    """ASA and its ablations (paper: Eq. 13 and Table 3); the options are those of adversarial_sinkhorn_attention."""

    iterations: int = 2
    strength: float = 1.0
    cost: str = "adversarial"
    normalize: str = "rows"
    tolerance: float | None = None
    impl: str = "auto"

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return adversarial_sinkhorn_attention(
            query,
            key,
            value,
            iterations=self.iterations,
            strength=self.strength,
            cost=self.cost,
            normalize=self.normalize,
            tolerance=self.tolerance,
            impl=self.impl,
        )

    def joint(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        image: slice,
        grid: tuple[int, int] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """As `Operator.joint`; by the Triton kernels where they suit, for all heads at once and with no copy."""
        given = (query, key, value, image, grid, mask)
        if (image.start, image.stop) == (0, query.shape[2]) or not self._by_kernels(query, key, value):
            return super().joint(*given)
        check_attention_inputs(query, key, value)
        check_options(self.iterations, self.strength, self.cost, self.normalize, self.tolerance, self.impl)
        text_bias = text_bias_of(self.masks.image_rows(mask, image), image, query)
        scale = signed_scale(self.cost, self.strength, query)

        def by_kernels(kernels: ModuleType) -> Tensor:
            out = text_attending(query, key, value, image, mask)
            bias = None if text_bias is None else text_bias.expand(*query.shape[:2], -1, -1)
            joint(kernels, query, key, value, image, bias, scale, self.iterations, self.tolerance, out)
            return out

        compiled_in = ("joint", self.tolerance is not None, text_bias is not None)
        by_torch = partial(replace(self, impl="streaming").joint, *given)
        return KERNELS.run(query, value, compiled_in, by_kernels, by_torch)

    def _by_kernels(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Whether the kernels do all of joint attention; where rows aren't normalised, they may still do `plain`."""
        sinkhorn = self.cost != "uniform" and self.strength > 0 and self.normalize == "rows"
        return sinkhorn and named_implementation(self.impl) in ("auto", "triton") and KERNELS.suits(query, key, value)

    def map_rows(self, query: Tensor, key: Tensor, chosen: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        if self.normalize != "rows":
            raise ValueError(f"normalize: {self.normalize!r}; allowed: 'rows', for a map whose rows sum to 1")
        return attention_rows(
            query,
            key,
            chosen,
            iterations=self.iterations,
            strength=self.strength,
            cost=self.cost,
            tolerance=self.tolerance,
        )


class Identity(Operator):
    """Perturbed Attention Guidance (arXiv 2403.17377): the attention map is the identity, so the output is value."""

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        if value.shape[2] == query.shape[2]:
            return value
        # Reference-only control appends keys; the tokens' own come first, as in every host.
        if value.shape[2] > query.shape[2]:
            return value[:, :, : query.shape[2]]
        raise ValueError(
            f"value: {value.shape[2]} tokens; allowed: at least those of query, {query.shape[2]}, for an identity map"
        )

    def map_rows(self, query: Tensor, key: Tensor, chosen: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        dtype = torch.promote_types(query.dtype, torch.float32)
        return F.one_hot(chosen, key.shape[2]).to(dtype).expand(*query.shape[:2], -1, -1)

    def joint(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        image: slice,
        grid: tuple[int, int] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """SoftMax over the text keys and the token's own key, as PAG is defined for MMDiT (diffusers,
        attention_processor.py: PAGJointAttnProcessor2_0), in tiles of rows."""
        if (image.start, image.stop) == (0, query.shape[2]):
            self.masks.image_rows(mask, image)
            return self.plain(query, key, value, grid)
        text_bias = text_bias_of(self.masks.image_rows(mask, image), image, query)
        out = text_attending(query, key, value, image, mask)
        text_key, text_value = text_of(key, image, 2), text_of(value, image, 2)
        scale = 1 / math.sqrt(query.shape[3])
        images = range(*image.indices(query.shape[2]))
        step = max(JOINT_TILE_ELEMENTS // (query.shape[0] * query.shape[1] * (text_key.shape[2] + 1)), 1)
        for start in range(images.start, images.stop, step):
            rows = slice(start, min(start + step, images.stop))
            own = (query[:, :, rows] * key[:, :, rows]).sum(dim=-1, keepdim=True)
            text_logits = query[:, :, rows] @ text_key.transpose(-1, -2) * scale
            if text_bias is not None:
                text_logits = text_logits + text_bias[:, :, rows.start - images.start : rows.stop - images.start]
            logits = torch.cat([text_logits, own * scale], dim=-1)
            weights = torch.softmax(at_least_float32(logits), dim=-1).to(value.dtype)
            out[:, :, rows] = weights[..., :-1] @ text_value + weights[..., -1:] * value[:, :, rows]
        return out


@dataclass(frozen=True)
class QueryBlur(Operator):
    """Smoothed Energy Guidance (arXiv 2408.00760): SoftMax attention of queries blurred over the token grid.

    `sigma` is in tokens; inf is the mean query, which needs no grid.
    """

    sigma: float = math.inf

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return F.scaled_dot_product_attention(self.blur(query, grid), key, value)

    def map_rows(self, query: Tensor, key: Tensor, chosen: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return softmax_rows(self.blur(query, grid)[:, :, chosen], key, 1 / math.sqrt(query.shape[3]))

    def blur(self, query: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Queries (batch, heads, height * width, d) blurred; raises ValueError when the grid doesn't fit them."""
        if self.sigma > INFINITE_SIGMA:
            return query.mean(dim=2, keepdim=True).expand_as(query)
        if grid is None or grid[0] * grid[1] != query.shape[2]:
            raise ValueError(f"grid: {grid}; allowed: (height, width) whose product is {query.shape[2]} tokens")
        # First to the dtype: not every device has float64.
        rows, columns = (gaussian_matrix(size, self.sigma).to(query.dtype).to(query.device) for size in grid)
        planes = query.unflatten(2, grid)
        return torch.einsum("yh,xw,bnhwd->bnyxd", rows, columns, planes).flatten(2, 3)


def gaussian_matrix(size: int, sigma: float) -> Tensor:
    """The blur along one axis of `size` tokens as a (size, size) float64 matrix, borders reflected.

    The kernel is that of SEG's official code: ceil(6 sigma) + 1 taps, made odd. Reflection is a triangle wave, so a
    kernel longer than the axis is folded as often as it takes (the official code fails there).
    """
    length = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
    offsets = torch.arange(length) - length // 2
    taps = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    taps = taps / taps.sum()
    period = max(2 * (size - 1), 1)
    reached = (torch.arange(size)[:, None] + offsets).remainder(period)
    source = torch.minimum(reached, period - reached) if size > 1 else torch.zeros_like(reached)
    return torch.zeros(size, size, dtype=taps.dtype).scatter_add_(1, source, taps.expand(size, -1))


def make_operator(
    method: str, iterations: int = 2, strength: float = 1.0, sigma: float = math.inf, tolerance: float = 0.0
) -> Operator:
    """The operator that a `method` of METHODS names; iterations, strength and tolerance (0: none) matter to "asag" and
    "similarity", sigma to "seg"."""
    if method == "asag":
        return Sinkhorn(iterations=iterations, strength=strength, tolerance=tolerance or None)
    if method == "similarity":
        return Sinkhorn(iterations=iterations, strength=strength, cost="similarity", tolerance=tolerance or None)
    if method == "uniform":
        return Sinkhorn(cost="uniform")
    if method == "pag":
        return Identity()
    if method == "seg":
        return QueryBlur(sigma)
    raise ValueError(f"method: {method!r}; allowed: {', '.join(METHODS)}")
