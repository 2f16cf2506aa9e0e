"""Sinkhorn's iteration by torch's own attention kernels: on CUDA they also return the log-sum-exps of their rows.

Nothing of size n x m, no copy for each sweep, and nothing is read back to the host. With scores ``L + f + g``,
``L = scale * query keyᵀ``, a half-sweep is ``f = -LSE_j(L + g)`` or ``g = -LSE_i(L + f)``: constants such as log n move
no plan. A potential rides along as features, in parts, because half precision holds 11 or 8 bits of it in one number:

    queries  [f f 0… | q | u u 0…]          scale u = -1, nearly
    keys     [u u 0… | k | g g 0…]
              a column update reads the first two blocks, a row update the last two: each without the old potential
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from asag.device_scores import attention_by_tiles
from asag.kernel_choice import DIFFERENCE, VARIABLE, DeviceLost, first_line, is_lost

logger = logging.getLogger(__name__)

FEATURES = 8  # a head's width stays a multiple of it, as the kernels want
# How many numbers hold a potential: 22 bits in float16, 24 in bfloat16, all of float32.
PARTS = {torch.float16: 2, torch.bfloat16: 3, torch.float32: 1}
UNITS = (1e-3, 6e4)  # what float16 holds well; strengths from 1e-3 to 1e3 need no other
FLASH_WIDTH = 256
TRIAL_TOKENS = 256

Signature = tuple[str, torch.device, torch.dtype, int, int]


def with_sums(kernel: str, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """``softmax(S) value`` and ``LSE_j(S_ij)``, (batch, heads, n) float32, for ``S = scale * query keyᵀ``."""
    # Older versions of torch round the number of sums up.
    if kernel == "flash":
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        out, sums = flash(query, key, value, 0.0, False, False, scale=scale)[:2]
    else:
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        out, sums = efficient(query, key, value, None, True, 0.0, False, scale=scale)[:2]
    return out, sums[..., : query.shape[2]]


class Carried:
    """Queries and keys with room for both potentials: query (batch, heads, n, d), key (batch, heads, m, d)."""

    def __init__(self, kernel: str, query: Tensor, key: Tensor, scale: float) -> None:
        batch, heads, n, width = query.shape
        self.kernel, self.scale, self.parts = kernel, abs(scale), PARTS[query.dtype]
        self.inner = padded(width)
        both = query.new_zeros(batch, heads, n + key.shape[2], self.inner + 2 * FEATURES)
        self.queries, self.keys = both[:, :, :n], both[:, :, n:]
        inside = slice(FEATURES, FEATURES + width)
        if scale < 0:
            torch.neg(query, out=self.queries[..., inside])
        else:
            self.queries[..., inside] = query
        self.keys[..., inside] = key
        # The unit is -1 / scale as the dtype holds it; `factor` is what that lacks.
        unit = torch.tensor(-1 / self.scale, dtype=query.dtype, device="cpu").item()
        self.factor = -1 / (self.scale * unit)
        self.queries[..., -FEATURES : self.parts - FEATURES] = unit
        self.keys[..., : self.parts] = unit

    def row_sums(self, value: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attention to `value` under ``L + g``, and ``LSE_j(L + g)``, (batch, heads, n)."""
        queries, keys = self.queries[..., FEATURES:], self.keys[..., FEATURES:]
        return with_sums(self.kernel, queries, keys, self.any_value(keys) if value is None else value, self.scale)

    def first_row_sums(self) -> Tensor:
        """``LSE_j(L)``: without features the heads are narrower."""
        inside = slice(FEATURES, FEATURES + self.inner)
        queries, keys = self.queries[..., inside], self.keys[..., inside]
        return with_sums(self.kernel, queries, keys, self.any_value(keys), self.scale)[1]

    def column_sums(self) -> Tensor:
        """``LSE_i(L + f)``, (batch, heads, m)."""
        queries, keys = self.queries[..., :-FEATURES], self.keys[..., :-FEATURES]
        return with_sums(self.kernel, keys, queries, self.any_value(queries), self.scale)[1]

    def any_value(self, keys: Tensor) -> Tensor:
        """Values for a call of which only the sums are wanted. Flash attention takes those of the keys' width only."""
        return keys if self.kernel == "flash" else keys[..., :FEATURES]

    def put_rows(self, sums: Tensor) -> None:
        """f is minus `sums` from now on."""
        self._put(self.queries[..., : self.parts], sums)

    def put_columns(self, sums: Tensor) -> None:
        """g is minus `sums` from now on."""
        self._put(self.keys[..., -FEATURES : self.parts - FEATURES], sums)

    def _put(self, features: Tensor, sums: Tensor) -> None:
        """``factor * sums`` in parts: each is what the dtype holds of what those before it lack. The last is so small
        that it needs no factor."""
        torch.mul(sums, self.factor, out=features[..., 0])
        if self.parts == 3:
            sums = torch.sub(sums, features[..., 0], alpha=1 / self.factor)
            torch.mul(sums, self.factor, out=features[..., 1])
        if self.parts > 1:
            torch.sub(sums, features[..., -2], alpha=1 / self.factor, out=features[..., -1])


def padded(width: int) -> int:
    return width + -width % FEATURES


def attention_by(
    kernel: str, query: Tensor, key: Tensor, value: Tensor, scale: float, iterations: int, normalize: str
) -> Tensor:
    """The operator (asag.attention) without a tolerance by "flash" or "efficient", in the query's dtype."""
    carried = Carried(kernel, query, key, scale)
    sums = carried.first_row_sums()
    for iteration in range(iterations):
        if iteration:
            sums = carried.row_sums()[1]
        carried.put_rows(sums)
        carried.put_columns(carried.column_sums())
    values = value
    if kernel == "flash":
        # As wide as the keys; what stands in the features reaches no other column.
        values = value.new_empty(*value.shape[:3], carried.inner + FEATURES)
        values[..., : value.shape[3]] = value
    out, last = carried.row_sums(values)
    out = out[..., : value.shape[3]]
    if normalize == "columns":
        # With the f before the last g columns sum to 1, and the plan times n has columns of n / m.
        out = (out * (torch.exp(last - sums) * (query.shape[2] / key.shape[2]))[..., None]).to(query.dtype)
    return out


class AttentionKernels:
    """Which of torch's kernels may be used, and what they have been tried on in this process.

    Both are torch's inner functions, and only one card, an H100, has run this: the first call of each kind of tensors
    is tried on its first tokens and compared with tiles, for which the host waits. What fails stays off, with a line in
    the log.
    """

    def __init__(self) -> None:
        self.off: set[str] = set()
        self.tried: set[Signature] = set()

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, iterations: int, normalize: str
    ) -> Tensor | None:
        """The operator in the query's dtype; None where no kernel suits, and nothing was computed."""
        if not self.suits(query, value, scale):
            return None
        for kernel in ("flash", "efficient"):
            if kernel in self.off or not self.can_use(kernel, query, value):
                continue
            if self.trusts(kernel, query, key, value, scale):
                return attention_by(kernel, query, key, value, scale, iterations, normalize)
        return None

    @staticmethod
    def suits(query: Tensor, value: Tensor, scale: float) -> bool:
        """ROCm has kernels of its own behind the same names, whose sums nobody here has read the source of."""
        if query.device.type != "cuda" or query.dtype not in PARTS or torch.version.hip is not None:
            return False
        return value.shape[3] <= padded(query.shape[3]) + FEATURES and UNITS[0] <= 1 / abs(scale) <= UNITS[1]

    @staticmethod
    def can_use(kernel: str, query: Tensor, value: Tensor) -> bool:
        """Whether this build of torch has the kernel for the card, dtype and width, and it isn't switched off."""
        width = padded(query.shape[3]) + FEATURES
        if kernel == "flash" and (query.dtype == torch.float32 or width > FLASH_WIDTH):
            return False
        if kernel == "efficient" and value.shape[3] % FEATURES:
            return False
        ask = getattr(torch.backends.cuda, f"can_use_{kernel}_attention", None)
        if ask is not None:
            like = query.new_empty(1, 1, FEATURES, width)
            return bool(ask(sdpa_params(like)))
        if torch.cuda.get_device_capability(query.device) < (8, 0):
            return kernel == "efficient" and query.dtype != torch.bfloat16
        cuda = torch.backends.cuda
        return bool(cuda.flash_sdp_enabled() if kernel == "flash" else cuda.mem_efficient_sdp_enabled())

    def trusts(self, kernel: str, query: Tensor, key: Tensor, value: Tensor, scale: float) -> bool:
        """Whether the kernel's result has been compared; compares it the first time. Raises DeviceLost where CUDA is
        gone after that."""
        signature = (kernel, query.device, query.dtype, query.shape[3], value.shape[3])
        if signature in self.tried:
            return True
        few = [tensor[:1, :, :TRIAL_TOKENS] for tensor in (query, key, value)]
        try:
            found = attention_by(kernel, few[0], few[1], few[2], scale, 2, "columns").float()
            expected = attention_by_tiles(few[0], few[1], few[2], scale, 2, None, "columns").float()
            # Here the host waits: what failed on the device shows now.
            difference = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # a build without the kernel, another signature: there is another way
            reason = first_line(error)
            if is_lost(query.device):
                raise DeviceLost(
                    f"the GPU failed while ASAG tried torch's {kernel} attention kernel ({reason}); restart with "
                    f"{VARIABLE}=dense in the environment, which takes more memory"
                ) from error
            return self.switch_off(kernel, reason)
        if not difference <= DIFFERENCE[query.dtype]:
            return self.switch_off(kernel, f"its first result differs by {difference:.2g}")
        self.tried.add(signature)
        return True

    def switch_off(self, kernel: str, reason: str) -> bool:
        self.off.add(kernel)
        logger.warning("ASAG doesn't use torch's %s attention kernel: %s", kernel, reason)
        return False


def sdpa_params(like: Tensor) -> Any:
    """SDPA's arguments without a mask; torch 2.5 added one that says whether heads share keys."""
    params: Any = torch.backends.cuda.SDPAParams
    given = (like, like, like, None, 0.0, False)
    try:
        return params(*given, False)
    except TypeError:
        return params(*given)


# What was found amiss in this process holds for all of it.
ATTENTION_KERNELS = AttentionKernels()
