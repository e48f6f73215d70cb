"""Addresses on libvirt's networks: one VM has each, whichever machine's CPI made it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from runtimes.libvirt.addresses import Addresses, FileAddresses, PoolAddresses
from runtimes.libvirt.volumes import StoragePool
from runtimes.libvirt.xml.storage_xml import Volume

ONE, TWO = "kvm-vm-1", "kvm-vm-11"
Make = Callable[[], Addresses]


class Volumes:
    """A pool, as far as addresses use it."""

    def __init__(self) -> None:
        self.there = ["kvm-vm-1.root", "other_10.0.0.2_kvm-vm-9.address"]
        self.before_create: Callable[[], Any] = lambda: None

    def names(self) -> list[str]:
        return list(self.there)

    def create(self, volume: Volume) -> None:
        self.before_create()
        self.there.append(volume.name)

    def delete(self, name: str) -> None:
        self.there.remove(name)


@pytest.fixture
def volumes() -> Volumes:
    return Volumes()


@pytest.fixture(params=["files", "pool"])
def make(request: pytest.FixtureRequest, volumes: Volumes, tmp_path: Path) -> Make:
    """Return addresses as a new call has them."""
    if request.param == "files":
        return lambda: FileAddresses(tmp_path)
    return lambda: PoolAddresses(cast(StoragePool, volumes))


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
def test_one_vm_has_an_address_until_it_gives_it_back(make: Make, address: str) -> None:
    assert make().reserve("bosh", address, ONE) == ONE
    assert make().reserve("bosh", address, ONE) == ONE
    assert make().reserve("bosh", address, TWO) == ONE
    assert make().reserve("second", address, TWO) == TWO
    make().release(TWO)
    assert make().reserve("bosh", address, TWO) == ONE
    make().release(ONE)
    assert make().reserve("bosh", address, TWO) == TWO


def test_an_address_that_begins_like_another_is_another(make: Make) -> None:
    addresses = make()
    assert addresses.reserve("bosh", "10.0.0.20", ONE) == ONE
    assert addresses.reserve("bosh", "10.0.0.2", TWO) == TWO


def test_of_two_at_once_one_yields(volumes: Volumes) -> None:
    mine, theirs = (
        PoolAddresses(cast(StoragePool, volumes)),
        PoolAddresses(cast(StoragePool, volumes)),
    )

    def first_they() -> None:
        volumes.before_create = lambda: None
        assert theirs.reserve("bosh", "10.0.0.2", TWO) == TWO

    volumes.before_create = first_they
    assert mine.reserve("bosh", "10.0.0.2", ONE) == TWO
    assert [name for name in volumes.there if ONE + ".address" in name] == []
