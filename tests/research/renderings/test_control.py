"""`research control` on a tiny UNet with fresh adapters, which change nothing."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from asag.lab.renderings import shipped
from asag.lab.renderings.controlnet import new_controlnet
from asag.lab.renderings.ip_adapter import IpAdapterSubject
from asag.lab.renderings.sheet import CAPTIONS
from research import arguments
from research.lines import read_lines
from research.renderings import control
from tests.lab.renderings import standins, tiny_model


class Names:
    """A double of the judge that only knows names."""

    names = (*CAPTIONS[2:5], *(f"{colour} {thing}" for colour in ("red", "blue", "grey") for thing in ("a", "b", "c")))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return standins.write(tmp_path_factory.mktemp("renderings"))


@pytest.fixture(scope="module")
def model(tmp_path_factory, data):
    return tiny_model.write_unet(tmp_path_factory.mktemp("model"), data)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, model):
    """Options for a fresh adapter of each kind."""
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    new_controlnet(shipped.load_pipeline(model).unet).half().save_pretrained(folder / "controlnet")
    subject = IpAdapterSubject(model, 5.0)
    subject.save(subject.new(), folder)
    return {
        "controlnet": ["--controlnet", str(folder / "controlnet")],
        "ip-adapter": ["--ip-adapter", str(folder / "ip-adapter.safetensors")],
    }


def test_a_quarter_of_the_names_that_are_drawn_by_lot_were_held_out():
    found = control.asked(Names(), 11)
    assert found[:3] == list(CAPTIONS[2:5])
    held = control.asked_names(Names(), 2, control.SEED, left_out=True)[0]
    assert len(found) == 11
    assert found[9:] == held
    assert not set(found[3:9]) & set(held)


def test_differences_to_cfg_have_paired_errors():
    cfg = torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64)
    found = control.estimated({"lines": cfg + torch.tensor([1.0, 1.0, 4.0])}, {"lines": cfg})["lines"]
    assert found["value"] == pytest.approx(4)
    assert found["error"] == pytest.approx((13 / 3) ** 0.5)
    assert (found["to_cfg"], found["to_cfg_error"]) == pytest.approx((2, 1))
    assert control._shown(found) == "4.000"
    assert control._shown(found | {"to_cfg": -3.4}) == "4.000 (-3σ)"


@pytest.mark.parametrize("kind", ["controlnet", "ip-adapter"])
def test_a_fresh_adapter_is_measured_as_none_and_the_picture_itself_as_kept(
    tmp_path, data, model, adapter, kind, capsys
):
    options = ["--model", str(model), "--data", str(data), *adapter[kind], "--samples", "3", "--steps", "2"]
    assert control.main([*options, "--out", str(tmp_path)]) == 0
    lines = read_lines(tmp_path / f"{kind}.jsonl")
    assert [line["way"] for line in lines] == [way.name for way in control.ways()]
    assert len(lines) == 8
    without, cfg = lines[:2]
    for name in control.METRICS:
        assert without["metrics"][name]["value"] == pytest.approx(cfg["metrics"][name]["value"], abs=1e-5), name
    if kind == "controlnet":
        moved = [line["metrics"]["log_probability"]["to_cfg"] for line in lines[2:]]
        assert all(abs(each) > 0 for each in moved)
    page = (tmp_path / f"{kind}.md").read_text()
    assert page in capsys.readouterr().out
    assert page.count("\n| CFG + ") == 6
    for blocks in control.BLOCKS:
        with Image.open(tmp_path / f"{kind}-{blocks}.png") as figure:
            assert figure.width > 300
    adapted = control.Adapted(arguments.control(options))
    own = adapted.measured(adapted.wanted)
    assert own["lines"].tolist() == [1, 1, 1]
    assert own["likeness"].tolist() == pytest.approx([1, 1, 1])


def test_each_picture_sees_its_own_reference_alone(tmp_path, data, model, adapter):
    torch.manual_seed(0)
    weights = load_file(adapter["ip-adapter"][1])
    path = tmp_path / "ip-adapter.safetensors"
    save_file({name: torch.randn_like(value.float()).half() for name, value in weights.items()}, path)
    options = ["--model", str(model), "--data", str(data), "--ip-adapter", str(path), "--samples", "3", "--steps", "2"]
    adapted, way = control.Adapted(arguments.control(options)), list(control.ways())[1]
    before = adapted.images(way)
    adapted.features[0] += 1
    after = adapted.images(way)
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0], after[0])


@pytest.mark.parametrize(
    ("kind", "way", "name"),
    [
        *(("controlnet", way, "lines") for way in ("without", "CFG", "CFG + ASAG, all")),
        *(("ip-adapter", way, "likeness") for way in ("without", "CFG", "CFG + ASAG, all")),
        *(("ip-adapter", way, "log_probability") for way in ("CFG", "CFG + PAG, all", "CFG + ASAG, all")),
    ],
)
def test_the_page_has_the_measured_figures(kind, way, name):
    room = Path(control.__file__).parent
    lines = {line["way"]: line for line in read_lines(room / "results" / f"{kind}.jsonl")}
    assert f"{lines[way]['metrics'][name]['value']:.3f}" in (room / "README.md").read_text()


def test_mistakes_are_named(tmp_path, data, model, adapter, capsys):
    for given, said in (
        (["--model", str(tmp_path), *adapter["controlnet"]], "--model: "),
        (["--model", str(model), "--controlnet", str(tmp_path / "none")], "--controlnet: "),
        (["--model", str(model), *adapter["ip-adapter"], "--samples", "1"], "--samples: 1; allowed: at least 2"),
    ):
        with pytest.raises(SystemExit):
            control.main([*given, "--data", str(data)])
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        control.main(["--model", str(model), *adapter["ip-adapter"], "--data", str(tmp_path)])
    assert "--data: " in capsys.readouterr().err
