"""What the operators ask of a CUDA device, counted on fake tensors: no wait, few kernels, no square, no float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from asag.attention import adversarial_sinkhorn_attention, attention_rows
from asag.attention_kernels import Carried
from asag.device_scores import DEVICE_TILE_BYTES, WholeHeads
from asag.guidance import shift_rows
from asag.hosts.diffusers_pass import Passes
from asag.hosts.forge_rows import RowLists
from asag.lab.bench.fake_cuda import FakeCuda
from asag.lab.bench.roofline import Record
from asag.models.diffusers_mmdit import FluxTransformer
from asag.operators import METHODS, make_operator
from tests.support import needs_fake_cuda

pytestmark = needs_fake_cuda

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
# Heads, height and width in tokens, head_dim: the middle blocks of SD1.5 and SDXL, upright SDXL, and more than a tile.
SHAPES = [(8, 8, 8, 160), (20, 32, 32, 64), (20, 38, 26, 64), (10, 64, 64, 64)]
KERNELS_BELOW_4096 = 30


# Which of torch's attention kernels a build or a card may lack; with neither the operator goes by tiles.
LACKING: list[tuple[str, ...]] = [(), ("flash",), ("flash", "efficient")]


def counted(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    method: str,
    text: int = 0,
    sm: int = 89,
    triton: bool = False,
    without: tuple[str, ...] = (),
) -> Record:
    heads, height, width, head_dim = shape
    with FakeCuda(sm, triton, without) as fake:
        size = (1, height * width + text, heads, head_dim)
        query, key, value = (torch.empty(size, device="cuda", dtype=dtype).transpose(1, 2) for _ in range(3))
        operator = make_operator(method)
        with fake.recording() as record:
            if text:
                operator.joint(query, key, value, slice(0, height * width), (height, width))
            else:
                operator.plain(query, key, value, (height, width))
    return record


def waits_of(record: Record) -> list[str]:
    return [f"{op.waits} at {op.site}" for op in record.waits]


@pytest.mark.parametrize("without", LACKING)
@pytest.mark.parametrize("dtype", [HALF, BRAIN, SINGLE])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_operator_waits_for_nothing_and_takes_few_kernels(
    shape: tuple[int, int, int, int], dtype: torch.dtype, without: tuple[str, ...]
) -> None:
    record = counted(shape, dtype, "asag", without=without)
    tokens = shape[1] * shape[2]
    assert waits_of(record) == []
    assert torch.float64 not in record.dtypes
    assert not [name for name in record.sdpa if name.startswith("math")]
    if tokens < 4096 or "efficient" not in without:
        assert record.kernels <= KERNELS_BELOW_4096
    squares = record.squares(tokens, tokens)
    assert not [each for each in squares if each.size > DEVICE_TILE_BYTES]
    assert bool(squares) == ("efficient" in without)


@pytest.mark.parametrize(
    ("dtype", "kernels", "attention"), [(HALF, 19, "flash"), (BRAIN, 27, "flash"), (SINGLE, 14, "efficient")]
)
def test_two_sweeps_are_four_calls_of_torchs_attention_and_one_is_the_result(
    dtype: torch.dtype, kernels: int, attention: str
) -> None:
    record = counted((20, 32, 32, 64), dtype, "asag")
    assert record.kernels == kernels
    called = [op.name for op in record.ops if op.name.startswith("_scaled")]
    assert called == [f"_scaled_dot_product_{attention}_attention"] * 5


def test_a_read_in_a_sweep_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above would say if someone wrote .item() there."""
    for owner, name, without in ((Carried, "put_rows", ()), (WholeHeads, "_group", LACKING[2])):
        original = getattr(owner, name)

        def reading(
            self: object, *given: object, original: Callable[..., object] = original, **named: object
        ) -> object:
            next(each for each in given if isinstance(each, torch.Tensor)).sum().item()
            return original(self, *given, **named)

        monkeypatch.setattr(owner, name, reading)
        assert waits_of(counted(SHAPES[0], HALF, "asag", without=without))


@pytest.mark.parametrize("dtype", [HALF, BRAIN, SINGLE])
@pytest.mark.parametrize("shape", SHAPES)
def test_with_triton_a_layer_takes_five_kernels(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    record = counted(shape, dtype, "asag", triton=True)
    assert [op.name for op in record.ops] == ["half_sweep"] * 4 + ["biased_attention"]
    assert waits_of(record) == []
    assert not record.squares(shape[1] * shape[2], shape[1] * shape[2])


@pytest.mark.parametrize("dtype", [HALF, BRAIN, SINGLE])
def test_with_triton_joint_attention_takes_seven_kernels_and_no_copy(dtype: torch.dtype) -> None:
    """Four half-sweeps and the image's attention; the text's rows are SDPA's, and are put where they belong."""
    record = counted((24, 64, 64, 64), dtype, "asag", text=154, triton=True)
    ours = [op.name for op in record.ops if op.site.startswith("asag/kernel")]
    assert ours == ["half_sweep"] * 4 + ["joint_attention"]
    assert record.kernels <= 7
    assert waits_of(record) == []
    assert not [each for each in record.allocations if each.name == "constant_pad_nd"]


@pytest.mark.parametrize("text", [0, 160])
def test_with_triton_memory_is_what_is_given_the_result_and_the_potentials(text: int) -> None:
    record = counted((10, 64, 64, 64), HALF, "asag", text=text, triton=True)
    size = 10 * (4096 + text) * 64 * 2
    potentials = 3 * 10 * 4096 * 4
    texts = 2 * 10 * text * 64 * 2
    assert 4 * size < record.peak <= 4 * size + potentials + texts


@pytest.mark.parametrize("triton", [False, True])
def test_nothing_of_a_layer_is_kept(triton: bool) -> None:
    with FakeCuda(triton=triton) as fake, fake.recording() as record:
        query = torch.empty(1, 4, 64, 64, device="cuda", dtype=HALF)
        make_operator("asag").plain(query, query, query)
        del query
    assert record.peak > 0
    assert record.live == 0


def test_triton_is_for_ampere_and_later_and_for_its_head_dims() -> None:
    for shape, sm in (((4, 8, 8, 64), 75), ((4, 8, 8, 8), 89)):
        assert "half_sweep" not in {op.name for op in counted(shape, HALF, "asag", sm=sm, triton=True).ops}


@pytest.mark.parametrize("text", [0, 24])
@pytest.mark.parametrize("method", METHODS)
def test_no_method_waits(method: str, text: int) -> None:
    record = counted((4, 16, 16, 64), HALF, method, text)
    assert waits_of(record) == []
    assert torch.float64 not in record.dtypes


@pytest.mark.parametrize("dtype", [torch.bool, HALF])
@pytest.mark.parametrize("method", METHODS)
def test_masks_of_a_kind_are_looked_at_once_in_a_run(method: str, dtype: torch.dtype) -> None:
    operator = make_operator(method)
    with FakeCuda() as fake:
        query = torch.empty(2, 4, 64 + 16, 40, device="cuda", dtype=HALF)
        masks = [torch.empty(2, 1, 1, 64 + 16, device="cuda", dtype=dtype) for _ in range(3)]
        waits = []
        for mask in masks:
            with fake.recording(lambda name, tensor: dtype == torch.bool) as record:
                operator.joint(query, query, query, slice(0, 64), (8, 8), mask)
            waits.append(len(record.waits))
    assert waits == [1, 0, 0]


@pytest.mark.parametrize("without", LACKING)
@pytest.mark.parametrize("dtype", [HALF, SINGLE])
def test_memory_is_a_few_tiles_and_no_square_of_a_head(dtype: torch.dtype, without: tuple[str, ...]) -> None:
    tokens = 8192
    record = counted((10, 64, 128, 64), dtype, "asag", without=without)
    inputs = 4 * 10 * tokens * 64 * 4
    tiles = 2 * DEVICE_TILE_BYTES + (1 << 26) if "efficient" in without else 0
    assert record.peak < 4 * inputs + tiles
    assert not record.squares(tokens, tokens)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("tolerance", [None, 1e-3])
@pytest.mark.parametrize("normalize", ["rows", "columns"])
def test_no_option_waits(normalize: str, tolerance: float | None, triton: bool) -> None:
    with FakeCuda(triton=triton) as fake:
        query = torch.empty(2, 4, 64, 40, device="cuda", dtype=HALF)
        chosen = torch.arange(3, device="cuda")
        with fake.recording() as record:
            adversarial_sinkhorn_attention(query, query, query, normalize=normalize, tolerance=tolerance)
            attention_rows(query, query, chosen, tolerance=tolerance)
    assert waits_of(record) == []


@pytest.mark.parametrize(("sm", "dtype"), [(75, HALF), (75, BRAIN), (70, HALF), (89, SINGLE)])
def test_no_card_builds_the_square(sm: int, dtype: torch.dtype) -> None:
    record = counted((10, 64, 64, 64), dtype, "asag", sm=sm)
    assert not [name for name in record.sdpa if name.startswith("math")]


def test_hosts_say_which_rows_they_mean_without_a_wait() -> None:
    with FakeCuda() as fake:
        rows = torch.empty(4, 4, 8, 8, device="cuda", dtype=HALF)
        lists = RowLists({"cond_or_uncond": [0, 1], "cond_mark": torch.empty(4, device="cuda")}, 4)
        with fake.recording() as record:
            shift_rows(rows, rows[:2], [0, 1, 0, 1])
            lists.tell([0, 1, 2, 3, 0, 1])
    assert waits_of(record) == []


def test_position_ids_of_flux_are_read_once() -> None:
    passes = Passes(None, FluxTransformer(), "paper")
    with FakeCuda() as fake:
        given = {"hidden_states": torch.empty(1, 16, 8, device="cuda"), "img_ids": torch.empty(16, 3, device="cuda")}
        with fake.recording() as first:
            passes.latent_size([], given)
        with fake.recording() as later:
            passes.latent_size([], dict(given))
            passes.latent_size([], dict(given))
    assert len(first.waits) == 1
    assert waits_of(later) == []
