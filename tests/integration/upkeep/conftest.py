"""A host of their own for tests that restart it, or leave garbage on it."""

from pathlib import Path

import pytest

from tests.support.containerd.machine import Machine


@pytest.fixture(scope="module")
def machine(other_machine: Machine) -> Machine:
    return other_machine


@pytest.fixture(scope="module")
def stemcell(machine: Machine, runit_image: Path) -> str:
    return str(machine.call("create_stemcell", str(runit_image), {}))
