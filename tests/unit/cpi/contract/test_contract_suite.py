"""The contract's tests on the fake runtime: they try the tests as much as the contract layer."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.contract_lab import Cpi
from tests.support.contract_suite import RuntimeContract
from tests.support.cpi_calls import call, fake_config, fake_registered


class TestFakeRuntime(RuntimeContract):
    @pytest.fixture
    def cpi(self, tmp_path: Path) -> Iterator[Cpi]:
        config = fake_config(tmp_path)

        def send(
            method: str, *arguments: object, api_version: int = 2, context: Any = None
        ) -> dict[str, Any]:
            return call(config, method, *arguments, api_version=api_version, context=context)

        with fake_registered():
            yield send

    @pytest.fixture
    def stemcell(self, tmp_path: Path) -> Path:
        image = tmp_path / "image"
        image.write_bytes(gzip.compress(b"a root file system", mtime=0))
        return image
