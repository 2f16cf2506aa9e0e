"""The operators plain and joint, against matrices written out and the published formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

import asag.operators
from asag.attention import adversarial_sinkhorn_attention
from asag.operators import METHODS, Identity, Operator, QueryBlur, Sinkhorn, gaussian_matrix, make_operator
from asag.settings import AsagSettings


class PlainSoftmax(Operator):
    """SoftMax among image tokens, joint by the base class's rule."""

    def plain(self, query, key, value, grid=None):
        return F.scaled_dot_product_attention(query, key, value)


def sequence(text: int = 5, image: int = 12, d: int = 8, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(2, 3, text + image, d, generator=generator) for _ in range(3))


def double_sequence(text=5):
    return tuple(tensor.double() for tensor in sequence(text))


def rounding(query, key):
    """Of an accelerator, which computes in float32: its error grows with the logits."""
    largest = (query @ key.transpose(-1, -2)).abs().max() / math.sqrt(query.shape[3])
    return 0.0 if query.device.type == "cpu" else 10 * 2**-24 * float(largest)


@pytest.mark.parametrize("image", [slice(5, 17), slice(0, 12)])
def test_joint_with_softmax_changes_nothing(image):
    query, key, value = sequence()
    out = PlainSoftmax().joint(query, key, value, image)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("image", [slice(5, 17), slice(0, 12)])
def test_joint_sinkhorn_keeps_text_weights_and_spreads_the_rest(image):
    query, key, value = sequence()
    out = Sinkhorn().joint(query, key, value, image)
    weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(8), dim=-1)
    text = [token for token in range(17) if token not in range(image.start, image.stop)]
    plain = adversarial_sinkhorn_attention(query[:, :, image], key[:, :, image], value[:, :, image])
    expected = weights @ value
    mass = weights[:, :, image, image].sum(-1, keepdim=True)
    expected[:, :, image] = weights[:, :, image][..., text] @ value[:, :, text] + mass * plain
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out[:, :, text], F.scaled_dot_product_attention(query, key, value)[:, :, text])


def test_identity_joint_is_attention_with_image_keys_masked_but_the_diagonal(monkeypatch):
    monkeypatch.setattr("asag.operators.JOINT_TILE_ELEMENTS", 200)
    query, key, value = double_sequence()
    image = slice(5, 17)
    mask = torch.zeros(17, 17, dtype=torch.float64)
    mask[image, image] = -math.inf
    mask[image, image].fill_diagonal_(0)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(Identity().joint(query, key, value, image), expected, rtol=0, atol=1e-12)


class Recording(PlainSoftmax):
    """Remembers how many heads it is given at a time."""

    def __init__(self):
        self.heads = []

    def plain(self, query, key, value, grid=None):
        self.heads.append(query.shape[1])
        return super().plain(query, key, value, grid)


@pytest.mark.parametrize(
    ("share", "heads"), [(3, [3]), (2.99, [2, 1]), (1, [1, 1, 1]), (0.1, [1, 1, 1]), (1.99, [1, 1, 1])]
)
def test_joint_takes_as_many_heads_as_fit_and_each_has_its_own_mask(monkeypatch, share, heads):
    """A head's copy is batch x keys x (features + 8) numbers."""
    elements = int(share * 2 * 17 * (5 + 8))
    monkeypatch.setattr("asag.operators.JOINT_CHUNK_ELEMENTS", {"cpu": elements})
    monkeypatch.setattr("asag.operators.DEVICE_CHUNK_ELEMENTS", elements)
    query, key, value = sequence()
    value = value[..., :5]
    by_head = torch.zeros(2, 3, 17, 17)
    by_head[:, :, :, :5] = torch.randn(2, 3, 17, 5, generator=torch.Generator().manual_seed(2))
    for mask in (None, by_head, by_head[:, 1:2]):
        operator = Recording()
        out = operator.joint(query, key, value, slice(5, 17), mask=mask)
        assert operator.heads == heads
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("elements", "rows"), [(200, [5, 5, 2]), (36 * 12, [12]), (36 * 12 - 1, [11, 1]), (1, [1] * 12)]
)
def test_identity_joint_takes_as_many_rows_as_fit(monkeypatch, elements, rows):
    """A row's logits are those of batch x heads x (text + 1): 2 x 3 x 6."""
    monkeypatch.setattr("asag.operators.JOINT_TILE_ELEMENTS", elements)
    tiles = []
    raised = asag.operators.at_least_float32

    def recorded(logits):
        tiles.append(logits.shape[2])
        return raised(logits)

    monkeypatch.setattr("asag.operators.at_least_float32", recorded)
    query, key, value = double_sequence()
    bias = torch.randn(1, 1, 17, 5, generator=torch.Generator().manual_seed(2)).double()
    mask = F.pad(bias, (0, 12))
    out = Identity().joint(query, key, value, slice(5, 17), mask=mask)
    assert tiles == rows
    mask = mask.repeat(1, 1, 1, 1)
    mask[:, :, 5:, 5:] += torch.full((12, 12), -math.inf, dtype=torch.float64).fill_diagonal_(0)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def text_masks(text: int = 5, image: int = 12):
    """Masks that hide text tokens: of keys, booleans and additive; of keys by query; with heads."""
    hidden = torch.ones(2, 1, 1, text + image, dtype=torch.bool)
    hidden[0, ..., 2:text] = False
    by_query = torch.zeros(2, 3, text + image, text + image)
    by_query[..., 1] = -2.0
    by_query[..., :text, :] += torch.linspace(-1, 1, text + image)
    return [hidden, torch.zeros(hidden.shape).masked_fill(~hidden, -torch.inf), by_query]


@pytest.mark.parametrize("mask", text_masks(), ids=["boolean", "additive", "by query"])
def test_joint_with_softmax_keeps_to_a_mask(mask):
    query, key, value = sequence()
    out = PlainSoftmax().joint(query, key, value, slice(5, 17), mask=mask)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", text_masks(), ids=["boolean", "additive", "by query"])
def test_identity_joint_keeps_to_a_mask(mask):
    query, key, value = double_sequence()
    image = slice(5, 17)
    whole = torch.zeros(17, 17, dtype=torch.float64)
    whole[image, image] = torch.full((12, 12), -torch.inf, dtype=torch.float64).fill_diagonal_(0)
    mask = mask if mask.dtype == torch.bool else mask.double()
    added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=whole + added)
    out = Identity().joint(query, key, value, image, mask=mask)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("operator", [Sinkhorn(), Identity()])
@pytest.mark.parametrize("image", [slice(5, 17), slice(0, 17)])
def test_a_mask_between_image_tokens_is_refused(operator, image):
    query, key, value = sequence()
    mask = torch.zeros(1, 1, 17, 17)
    mask[..., 9, 12] = -1.0
    for each in (mask, mask == 0):
        with pytest.raises(ValueError, match="mask: hides image tokens"):
            operator.joint(query, key, value, image, mask=each)


@pytest.mark.parametrize("operator", [Sinkhorn(), Identity(), QueryBlur(2.0)])
def test_joint_of_image_tokens_alone_is_plain(operator):
    query, key, value = sequence(text=0)
    out = operator.joint(query, key, value, slice(0, 12), grid=(3, 4))
    assert torch.equal(out, operator.plain(query, key, value, (3, 4)))


def test_identity_returns_the_tokens_own_values_where_keys_were_appended():
    query, key, value = sequence()
    assert torch.equal(Identity().plain(query, key, value), value)
    longer = torch.cat([value, torch.ones(2, 3, 4, 8)], dim=2)
    assert torch.equal(Identity().plain(query, longer, longer), value)
    with pytest.raises(ValueError, match="value: 3 tokens; allowed: at least those of query, 17"):
        Identity().plain(query, key[:, :, :3], value[:, :, :3])


def official_blur(query: torch.Tensor, height: int, width: int, sigma: float) -> torch.Tensor:
    """SEG's published procedure: reflect padding and one convolution per channel."""
    size = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
    offsets = torch.linspace(-(size - 1) / 2, (size - 1) / 2, size)
    taps = torch.exp(-0.5 * (offsets.to(query) / sigma) ** 2)
    taps = taps / taps.sum()
    planes = query.transpose(-1, -2).reshape(-1, query.shape[-1], height, width)
    kernel = (taps[:, None] * taps[None, :]).expand(planes.shape[1], 1, size, size)
    padded = F.pad(planes, [size // 2] * 4, mode="reflect")
    blurred = F.conv2d(padded, kernel, groups=planes.shape[1])
    return blurred.flatten(2).transpose(1, 2).reshape(query.shape)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.6])
def test_blur_is_segs(sigma):
    query = torch.randn(2, 3, 8 * 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = QueryBlur(sigma).blur(query, (8, 7))
    torch.testing.assert_close(ours, official_blur(query, 8, 7, sigma), rtol=0, atol=1e-12)


def test_wide_blur_is_constant_and_infinity_is_the_mean_query():
    query, key, value = sequence()
    mean = query.mean(2, keepdim=True).expand_as(query)
    assert torch.equal(QueryBlur(math.inf).blur(query, None), mean)
    # Reflection doesn't repeat the border tokens, so a wide blur is a mean that counts them half: constant, not equal.
    wide = QueryBlur(100.0).blur(query[:, :, :12], (3, 4))
    torch.testing.assert_close(wide, wide[:, :, :1].expand_as(wide), rtol=0, atol=1e-3)
    assert (QueryBlur(0.5).blur(query[:, :, :12], (3, 4)) - wide).abs().max() > 1
    out = QueryBlur().plain(query, key, value)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(mean, key, value))


@pytest.mark.parametrize(("size", "sigma"), [(1, 2.0), (2, 5.0), (16, 0.3), (9, 40.0)])
def test_gaussian_matrix_rows_sum_to_one(size, sigma):
    ones = torch.ones(size, dtype=torch.float64, device="cpu")
    torch.testing.assert_close(gaussian_matrix(size, sigma).sum(1), ones)


def test_blur_without_a_fitting_grid_is_an_error():
    query, key, value = sequence()
    with pytest.raises(ValueError, match=r"grid: \(4, 4\); allowed: .* 17 tokens"):
        QueryBlur(1.0).plain(query, key, value, (4, 4))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keys", [12, 15])
@pytest.mark.parametrize("gain", [1.0, 60.0])
def test_rows_of_the_map_times_value_are_the_rows_of_plain(method, keys, gain):
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, 3, n, 8, generator=generator) for n in (12, keys, keys))
    query = gain * query
    operator, chosen = make_operator(method, iterations=3, strength=1.3, sigma=1.5), torch.tensor([0, 3, 11])
    rows = operator.map_rows(query, key, chosen, (3, 4)).float()
    assert rows.shape == (2, 3, 3, keys)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 3, 3), rtol=0, atol=1e-5)
    expected = operator.plain(query, key, value, (3, 4))[:, :, chosen]
    torch.testing.assert_close(rows @ value, expected, rtol=1e-5, atol=1e-5 + rounding(query, key))


@pytest.mark.parametrize("operator", [Sinkhorn(strength=0.0), Sinkhorn(tolerance=0.05, iterations=20), QueryBlur()])
def test_rows_of_the_map_in_special_cases(operator):
    query, key, value = sequence()
    chosen = torch.tensor([16, 2])
    expected = operator.plain(query, key, value)[:, :, chosen]
    torch.testing.assert_close(operator.map_rows(query, key, chosen) @ value, expected, rtol=1e-5, atol=1e-5)


def test_rows_of_the_map_are_in_full_precision_for_half_precision_inputs():
    query, key, _ = (tensor.to(torch.bfloat16) for tensor in sequence())
    chosen = torch.tensor([4])
    for method in METHODS:
        operator = make_operator(method)
        expected = operator.map_rows(query.float(), key.float(), chosen)
        torch.testing.assert_close(operator.map_rows(query, key, chosen).float(), expected, rtol=2e-2, atol=2e-3)
        assert operator.map_rows(query, key, chosen).dtype == torch.float32


def test_a_map_normalized_by_columns_has_no_rows_that_sum_to_one():
    query, key, _ = sequence()
    with pytest.raises(ValueError, match="normalize: 'columns'; allowed: 'rows'"):
        Sinkhorn(normalize="columns").map_rows(query, key, torch.tensor([0]))


@pytest.mark.parametrize(("method", "cost"), [("asag", "adversarial"), ("similarity", "similarity")])
def test_a_setting_of_tolerance_stops_the_iterations_of_algorithm_1_early(method, cost):
    query, key, value = sequence()
    query = 4 * query  # converges in some iterations and not in one

    def attention(iterations, **options):
        return adversarial_sinkhorn_attention(query, key, value, iterations=iterations, cost=cost, **options)

    def by_setting(tolerance):
        return AsagSettings(method=method, iterations=50, tolerance=tolerance).operator().plain(query, key, value)

    assert torch.equal(by_setting(0.0), attention(50))
    assert torch.equal(by_setting(1e-3), attention(50, tolerance=1e-3))
    # On an accelerator what stops early and what doesn't are computed by other kernels.
    bound = rounding(query, key)
    torch.testing.assert_close(by_setting(10.0), attention(1, impl="streaming"), rtol=bound, atol=bound)
    assert not torch.equal(by_setting(10.0), attention(50))


def test_every_method_has_its_own_operator():
    query, key, value = sequence()
    outs = [make_operator(method).plain(query, key, value) for method in METHODS]
    for first in range(len(outs)):
        for second in range(first):
            assert (outs[first] - outs[second]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="method: 'none'; allowed: asag, pag"):
        make_operator("none")


# Precision: float64 in gives float64 out ---------------------------------------------------------------------------


def dense_map(method, query, key, grid):
    """The map of a method written out, (…, queries, keys): no operator is used but SEG's published blur."""
    count, logits = query.shape[2], query @ key.transpose(-1, -2) / math.sqrt(query.shape[3])
    if method == "uniform":
        return torch.full_like(logits, 1 / count)
    if method == "pag":
        return torch.eye(count, dtype=query.dtype).expand_as(logits)
    if method == "seg":
        return torch.softmax(official_blur(query, *grid, 0.4) @ key.transpose(-1, -2) / math.sqrt(query.shape[3]), -1)
    kernel = torch.exp(-1.3 * logits if method == "asag" else 1.3 * logits)
    columns = torch.ones_like(kernel[..., :1, :])
    for _ in range(3):
        rows = 1 / (kernel * columns).sum(-1, keepdim=True)
        columns = 1 / (kernel * rows).sum(-2, keepdim=True)
    plan = kernel * columns
    return plan / plan.sum(-1, keepdim=True)


def operator_of(method):
    return make_operator(method, iterations=3, strength=1.3, sigma=0.4)


@pytest.mark.parametrize("method", METHODS)
def test_plain_in_float64_is_right_to_float64(method):
    query, key, value = double_sequence(text=0)
    expected = dense_map(method, query, key, (3, 4))
    out = operator_of(method).plain(query, key, value, (3, 4))
    torch.testing.assert_close(out, expected @ value, rtol=0, atol=1e-12)
    rows = operator_of(method).map_rows(query, key, torch.tensor([0, 7, 11]), (3, 4))
    torch.testing.assert_close(rows, expected[:, :, [0, 7, 11]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("image", [slice(5, 17), slice(0, 12), slice(2, 14)])
def test_joint_in_float64_is_right_to_float64(method, image):
    query, key, value = double_sequence(text=5)
    logits = query @ key.transpose(-1, -2) / math.sqrt(8)
    if method == "pag":
        # PAG for MMDiT masks all image keys but the token's own, before SoftMax.
        masked = torch.zeros(17, 17, dtype=torch.float64)
        masked[image, image] = torch.full((12, 12), -torch.inf, dtype=torch.float64).fill_diagonal_(0)
        weights = torch.softmax(logits + masked, dim=-1)
    else:
        weights = torch.softmax(logits, dim=-1)
        mass = weights[:, :, image, image].sum(-1, keepdim=True)
        weights[:, :, image, image] = mass * dense_map(method, query[:, :, image], key[:, :, image], (3, 4))
    out = operator_of(method).joint(query, key, value, image, (3, 4))
    torch.testing.assert_close(out, weights @ value, rtol=0, atol=1e-12)
