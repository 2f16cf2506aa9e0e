"""Muon against torch's own optimisers."""

import copy

import pytest
import torch

from asag.lab.embedded.muon import Muon, orthogonal


def run(parameters, optimiser, steps=4):
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        optimiser.step()
    return parameters


def test_the_others_take_adamws_steps():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64)), torch.nn.Parameter(torch.randn(5).double())]
    theirs = copy.deepcopy(ours)
    optimiser = Muon([], ours)
    optimiser.param_groups[1]["lr"] = 0.1
    run(ours, optimiser)
    run(theirs, torch.optim.AdamW(theirs, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_matrices_take_the_steps_of_torchs_muon(shape):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for _ in range(2)]
    start, theirs = copy.deepcopy(ours), copy.deepcopy(ours)
    optimiser = Muon(ours, [])
    optimiser.param_groups[0]["lr"] = 0.01
    run(ours, optimiser)
    run(theirs, torch.optim.Muon(theirs, lr=0.01, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"))
    for a, b, before in zip(ours, theirs, start, strict=True):
        # Both iterate in bfloat16 and round in different places.
        assert (a - b).norm() < 0.05 * (b - before).norm()


def test_a_kernel_of_a_convolution_is_taken_as_a_matrix():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn(4, 3, 3, 3)
    matrix.grad = kernel.grad.flatten(1)
    optimiser = Muon([kernel, matrix], [])
    optimiser.param_groups[0]["lr"] = 0.1
    optimiser.step()
    assert torch.allclose(kernel.flatten(1), matrix, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 30), (30, 5)])
def test_orthogonal_keeps_singular_vectors_and_brings_values_near_one(shape):
    matrix = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    found = orthogonal(matrix)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.mT @ found @ v.mT
    values = inside.diagonal(dim1=1, dim2=2)
    assert ((values > 0.6) & (values < 1.3)).all()
    assert (inside - torch.diag_embed(values)).abs().max() < 0.05
