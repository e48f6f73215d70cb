"""Fixtures of the fast tests, and the hooks of the leak check."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cpi.config.config import Config
from tests.support.fake_config import fake_config, fake_registered
from tests.support.leak_check import (  # hooks, which pytest finds by their names
    pytest_configure as pytest_configure,
    pytest_runtestloop as pytest_runtestloop,
    pytest_sessionfinish as pytest_sessionfinish,
    pytest_unconfigure as pytest_unconfigure,
)


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    """Yield a configuration whose VMs run on the fake runtime."""
    with fake_registered():
        yield fake_config(tmp_path)
