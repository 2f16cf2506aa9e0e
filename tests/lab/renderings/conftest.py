import pytest

from asag.lab.renderings import names
from tests.lab.renderings import standins


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return standins.write(tmp_path_factory.mktemp("renderings"))


@pytest.fixture(scope="session")
def renderings(folder):
    return names.read(folder)
