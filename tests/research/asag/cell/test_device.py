"""The option --device: what needs no GPU to be seen."""

import pytest
import torch

from asag.lab.renderings import names
from asag.lab.renderings.pictures import Pictures
from asag.lab.renderings.shipped import batch_on
from research.asag.cell import fingerprint
from research.renderings import choose


def test_a_gpu_makes_more_pictures_at_once():
    assert batch_on(torch.device("cuda")) >= 10 * batch_on(torch.device("cpu"))


def test_rows_and_numbers_of_the_cpu_make_pictures_on_another_device(data):
    """The device meta computes no values, and refuses tensors of the CPU as indices into its own."""
    kept, cpu = names.read(data), torch.device("cpu")
    rows, generator = torch.tensor([0, 2]), torch.Generator().manual_seed(0)
    there = Pictures(kept, torch.device("meta")).draw(rows, generator)
    after = torch.rand(1, generator=generator)
    generator.manual_seed(0)
    assert Pictures(kept, cpu).draw(rows, generator).shape == there.shape
    assert torch.equal(torch.rand(1, generator=generator), after)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [fingerprint, choose])
def test_a_gpu_that_is_not_there_is_named(unet_folder, capsys, command):
    with pytest.raises(SystemExit):
        command.main(["--model", str(unet_folder), "--device", "cuda"])
    assert "--device: cuda, but PyTorch finds no GPU; allowed: cpu" in capsys.readouterr().err
