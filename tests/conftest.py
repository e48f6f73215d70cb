"""Fixtures of the fast tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cpi.config.config import Config
from tests.support.cpi_calls import fake_config, fake_registered


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    """A configuration whose VMs run on the fake runtime."""
    with fake_registered():
        yield fake_config(tmp_path)
