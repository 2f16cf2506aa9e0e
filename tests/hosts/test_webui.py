"""What holds for every WebUI."""

import logging

import pytest

from asag.hosts.webui import log_warnings


@pytest.fixture
def neo(caplog):
    """Forge Neo's log: its root logger drops warnings."""
    asag = logging.getLogger("asag")
    before = asag.level, logging.root.level
    logging.root.setLevel(logging.ERROR)
    yield caplog
    asag.setLevel(before[0])
    logging.root.setLevel(before[1])


def test_warnings_are_in_the_log_of_a_host_that_drops_them(neo):
    logger = logging.getLogger("asag.hosts.generation")
    logger.warning("dropped")
    log_warnings()
    logger.warning("shown")
    logger.info("not shown")
    logging.getLogger("another").warning("dropped")
    assert neo.messages == ["shown"]
