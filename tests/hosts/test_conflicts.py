"""Which extensions switch ASAG off for an image. The scripts are doubles of the extensions' script objects."""

from types import SimpleNamespace

from asag.hosts.conflicts import conflict


def script(title: str, **attributes: object) -> SimpleNamespace:
    return SimpleNamespace(title=lambda: title, **attributes)


def test_active_region_extensions_are_named():
    assert conflict([script("ASAG"), script("Regional Prompter", active=True)]) == "Regional Prompter"
    regions = script("Tiled Diffusion", delegate=SimpleNamespace(custom_bboxes=[object()]))
    assert conflict([regions]) == "Tiled Diffusion's region control"


def test_inactive_ones_and_plain_grids_are_no_conflict():
    grid = script("Tiled Diffusion", delegate=SimpleNamespace(custom_bboxes=[]))
    off = script("Tiled Diffusion", delegate=None)
    assert (
        conflict([script("Regional Prompter", active=False), script("Regional Prompter"), grid, off, script("")])
        is None
    )
