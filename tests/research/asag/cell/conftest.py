"""A tiny random model of renderings in a folder, as `asag train --data` exports one, and what it is compared with."""

from pathlib import Path

import pytest

from tests.lab.renderings import standins, tiny_model


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return standins.write(tmp_path_factory.mktemp("renderings"))


@pytest.fixture(scope="session")
def unet_folder(tmp_path_factory, data) -> Path:
    return tiny_model.write_unet(tmp_path_factory.mktemp("unet"), data)


@pytest.fixture(scope="session")
def mmdit_folder(tmp_path_factory, data) -> Path:
    return tiny_model.write_mmdit(tmp_path_factory.mktemp("mmdit"), data)
