"""The entry script, as a WebUI drives it: in a double of AUTOMATIC1111 around a real UNet, against the definition."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from ldm.modules import attention
from torch import Tensor, nn

from asag.hosts.refused import Refused
from tests.hosts.a1111_double import Host, Options
from tests.hosts.guided import FIRST, PLAIN, assert_steps
from tests.hosts.reference import identity_map, real_unet
from tests.installed import installed
from tests.test_distributed import World

SCRIPT = Path(__file__).parents[1] / "scripts" / "asag.py"


class Script:
    """The double of modules.scripts.Script."""

    def elem_id(self, name: str) -> str:
        return name


class App:
    """The double of a FastAPI app."""

    def __init__(self) -> None:
        self.routes: list[Any] = []

    def add_api_route(self, path: str, endpoint: Any, methods: list[str], **more: Any) -> None:
        assert methods == ["GET"]
        self.routes.append(SimpleNamespace(path=path, endpoint=endpoint))

    def get(self, path: str, **query: str) -> Any:
        return {route.path: route.endpoint for route in self.routes}[path](**query)


class XyzGrid(ModuleType):
    """The double of the host's scripts/xyz_grid.py."""

    def __init__(self) -> None:
        super().__init__("xyz_grid.py")
        self.axis_options: list[Any] = []
        self.AxisOption = lambda label, kind, apply, **more: SimpleNamespace(label=label, apply=apply, **more)


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return real_unet()


@pytest.fixture
def host(unet: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    """The host with the script loaded, as `host.script`, and one object of its class, as `host.asag`."""
    monkeypatch.setattr(attention, "_ATTN_PRECISION", "that of its input")
    host, grid = Host(unet, PLAIN), XyzGrid()
    found = host.modules() | {name: ModuleType(name) for name in ("gradio", "fastapi", "fastapi.responses")}
    for name in ("scripts", "paths_internal", "ui_components", "shared_cmd_options"):
        found[f"modules.{name}"] = ModuleType(f"modules.{name}")
        setattr(found["modules"], name, found[f"modules.{name}"])
    found["modules.scripts"].__dict__.update(Script=Script, AlwaysVisible=object())
    grid_script = SimpleNamespace(script_class=type("Grid", (), {"__module__": grid.__name__}), module=grid)
    found["modules.scripts"].scripts_data = [grid_script]
    found["modules.paths_internal"].data_path = tmp_path
    found["modules.ui_components"].InputAccordion = None
    found["modules.shared_cmd_options"].cmd_opts = SimpleNamespace(api_auth=None)
    found["gradio"].__version__ = "4.40.0"
    found["fastapi"].FastAPI, found["fastapi.responses"].JSONResponse = App, dict
    found["asag.webui.ui"] = ModuleType("asag.webui.ui")  # the page has tests of its own
    with installed(found):
        specification = spec_from_file_location("asag_script", SCRIPT)
        host.script, host.grid = module_from_spec(specification), grid
        specification.loader.exec_module(host.script)
        host.asag = host.script.AsagScript()
        host.asag.args_from, host.asag.args_to = 1, 3
        host.p.scripts = SimpleNamespace(alwayson_scripts=[host.asag], scripts=[host.asag])
        yield host


@torch.no_grad()
def generate(host: Host, *args: Any) -> list[Tensor]:
    """A request of one batch."""
    host.options = Options(passes=[FIRST])
    host.asag.process_batch(host.p, *args, batch_number=0)
    results = host.p.sample()
    assert not host.callbacks.swallowed
    return results


def test_an_object_of_settings_guides(host: Host) -> None:
    assert_steps(host, generate(host, {"enabled": True, "scale": 3.0, "method": "pag"}), [[3.0] * 2], **PAG)
    assert host.p.extra_generation_params == {"ASAG": "scale 3.0; method pag"}


PAG = {"attention_map": identity_map}


def test_values_in_the_pages_order_guide(host: Host) -> None:
    assert_steps(host, generate(host, True, 2.5, "mid"), [[2.5] * 2])


@pytest.mark.parametrize("args", [(), (False, 2.5), ({"enabled": False},), ({"enabled": True, "scale": 0},)])
def test_what_is_off_is_the_hosts_own(host: Host, args: tuple[Any, ...]) -> None:
    assert_steps(host, generate(host, *args), [[0.0] * 2])
    assert host.p.extra_generation_params == {}


def test_each_request_is_of_its_own(host: Host) -> None:
    """Nothing of a guided one stays for the next, which isn't."""
    generate(host, {"enabled": True})
    assert_steps(host, generate(host), [[0.0] * 2])
    assert host.p.extra_generation_params == {}


def test_bad_settings_end_the_request(host: Host) -> None:
    with pytest.raises(Refused, match="scale: 999") as refused:
        generate(host, {"enabled": True, "scale": 999})
    assert refused.value.status_code == 422
    assert_steps(host, generate(host), [[0.0] * 2])


def test_bad_settings_end_the_request_before_a_checkpoint_loads(host: Host) -> None:
    host.p.override_settings = {}
    host.asag.before_process(host.p, {"enabled": True, "scale": 999})
    with pytest.raises(Refused, match="scale: 999"):
        host.p.override_settings.keys()
    host.asag.before_process(host.p, {"enabled": True})
    assert list(host.p.override_settings.keys()) == []


def test_a_request_that_was_guided_in_no_step_says_so(host: Host) -> None:
    # The first pass alone is generated.
    assert_steps(host, generate(host, {"enabled": True, "hires": "hires"}), [[0.0] * 2])
    assert "ASAG" not in host.p.extra_generation_params
    assert "guided no step" in host.p.extra_generation_params["ASAG note"]


def test_an_axis_of_a_plot_sets_its_option(host: Host) -> None:
    host.callbacks.call("on_before_ui")
    host.callbacks.call("on_app_started", None, App())
    labels = [axis.label for axis in host.grid.axis_options]
    assert len(labels) == len(set(labels))
    host.p.script_args = (0, False, 2.5)
    for label, value in (("[ASAG] Scale", 1.25), ("[ASAG] Method", "pag")):
        host.grid.axis_options[labels.index(label)].apply(host.p, value, [value])
        host.asag.args_to = len(host.p.script_args)
    assert_steps(host, generate(host, *host.p.script_args[1:]), [[1.25] * 2], **PAG)


def test_pictures_of_other_machines_are_looked_at(host: Host) -> None:
    """By the two methods that the host calls once pictures are there, with sd-webui-distributed's script beside it."""
    world, args = World(["Steps: 3"]), ({"enabled": True, "scale": 3.0},)
    host.p.scripts.alwayson_scripts.append(SimpleNamespace(title=lambda: "Distribute", world=world))
    world.p, host.p.batch_size, host.p.batch_index = host.p, 2, 2
    world.add_pictures(host.p, 2)
    host.asag.postprocess_image(host.p, SimpleNamespace(image=None), *args)
    assert host.comments[0].startswith("ASAG didn't guide what the worker two made")
    host.asag.postprocess(host.p, SimpleNamespace(comments=""), *args)
    assert "ASAG note" in world.jobs[1].worker.response["info"]


def test_the_routes_have_their_names(host: Host) -> None:
    app = App()
    host.callbacks.call("on_app_started", None, app)
    assert not host.callbacks.swallowed
    assert app.get("/asag/schema")["properties"]["scale"]["default"] == 1.5
    host.sd_model.sd_checkpoint_info = SimpleNamespace(name="one.safetensors")
    two = SimpleNamespace(name="two.safetensors", filename=str(SCRIPT))
    sys.modules["modules.sd_models"].checkpoint_aliases = {"two": two}
    sys.modules["modules.shared"].opts.sd_model_checkpoint = "two"
    known = app.get("/asag/blocks", blocks="out.0")
    assert (known["checkpoint"], known["chosen_checkpoint"]) == ("one.safetensors", "two.safetensors")
    assert (known["loaded"], known["kind"]) == (True, "UNet")
    assert known["chosen_problem"].startswith("ASAG can't read the blocks of a .py file before it is loaded")
    assert [each["address"] for each in known["blocks"]] == ["in.1", "mid", "out.0", "out.1"]
    assert [each["address"] for each in known["blocks"] if each["chosen"]] == ["out.0"]
