"""The contract's tests on the fake runtime: they try the tests as much as the contract layer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cpi.config.config import Config
from tests.support import fake_runtime
from tests.support.contract_lab import Cpi, MetadataOf
from tests.support.contract_suite import RuntimeContract
from tests.support.cpi_calls import call
from tests.support.operator_contract import OperatorContract
from tests.support.runtime_verb import call_verb


class TestFakeRuntime(RuntimeContract, OperatorContract):
    @pytest.fixture
    def cpi(self, config: Config) -> Cpi:
        def send(
            method: str, *arguments: object, api_version: int = 2, context: Any = None
        ) -> dict[str, Any]:
            return call(config, method, *arguments, api_version=api_version, context=context)

        return send

    @pytest.fixture
    def stemcell(self, tmp_path: Path) -> Path:
        return fake_runtime.write_image(tmp_path / "image")

    @pytest.fixture
    def metadata_of(self, config: Config) -> MetadataOf:
        return partial(fake_runtime.metadata_of, config)

    @pytest.fixture
    def verb(self, config: Config) -> Callable[..., Any]:
        return partial(call_verb, config)
