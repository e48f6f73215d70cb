"""The catalog of runtimes."""

import re

import pytest

from cpi import cid
from cpi.config.config import Config
from cpi.config.load import config_of
from cpi.errors import CPIError, VMNotFound
from cpi.log import Log
from cpi.runtime import Runtime
from runtimes import catalog
from tests.support.fake_config import FAKE, fake_registered
from tests.support.fake_runtime import FakeRuntime


def test_names_fit_into_cids() -> None:
    assert catalog.DEFAULT in catalog.REGISTRY
    for name, entry in catalog.REGISTRY.items():
        assert name == entry.name
        assert re.fullmatch(r"[a-z][a-z0-9]{0,15}", name)
        assert entry.stemcell_formats
        assert entry.hint


def test_containers_take_stemcells_by_the_old_and_the_new_name() -> None:
    formats = catalog.entry("containerd").stemcell_formats
    assert {"warden-tar", "warden-light", "oci-tar", "oci-light"} <= set(formats)


def test_keys_belong_to_their_runtime() -> None:
    declared = catalog.keys()
    for key in declared:
        assert key.name.split(".")[0] in catalog.REGISTRY


def test_load() -> None:
    with fake_registered():
        assert catalog.load("fake") is FakeRuntime


def test_unknown_runtime() -> None:
    with pytest.raises(
        CPIError, match=r"there is no runtime 'x\\n'; known: containerd, kvm, virtualbox"
    ):
        catalog.load("x\n")


def test_missing_dependency_gives_the_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_registered():
        monkeypatch.setattr(FAKE, "class_path", "no_such_module:Class")
        with pytest.raises(CPIError) as raised:
            catalog.load("fake")
    assert raised.value.message == (
        "the fake runtime does not load (No module named 'no_such_module'); "
        "the tests bring it along"
    )


def test_configured_runtimes_are_named_once_the_default_first() -> None:
    config = config_of({"runtime": "kvm", "runtimes": ["containerd", "kvm"]})
    assert catalog.configured(config) == ("kvm", "containerd")


def test_cids_of_other_cpis_are_not_ours() -> None:
    assert catalog.is_ours("kvm-vm-1", cid.VM)
    for foreign in ("kvm-disk-1", "other-vm-1", "i-0123456789", "../kvm-vm-1", ""):
        assert not catalog.is_ours(foreign, cid.VM)


def test_runtimes_are_loaded_once_and_closed_even_if_one_fails(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def close(runtime: FakeRuntime) -> None:
        closed.append(runtime)
        raise OSError

    monkeypatch.setattr(FakeRuntime, "close", close)
    log = Log("warn")
    with catalog.Runtimes(config, log) as runtimes:
        runtime = runtimes.default()
        assert runtimes.get("fake") is runtimes.of_cid("fake-vm-1", cid.VM) is runtime
        with pytest.raises(VMNotFound, match="other-vm-1 is of a runtime that this CPI does not"):
            runtimes.of_cid("other-vm-1", cid.VM)
    assert closed == [runtime]
    assert "closing the runtime fake: OSError" in log.text


# What a runtime may leave out: the methods that raise NotSupported where they are declared, and
# parts of two of them.
OPTIONAL = {
    name
    for name, method in vars(Runtime).items()
    if callable(method) and "_not_supported" in method.__code__.co_names
}
OF_ATTACHED_DISKS = {"grow_attached_disk", "snapshot_attached_disk"}

NETWORKS = {"create_network", "delete_network"}
INSIDE = {"run_inside", "log_places", "read_log"}  # full VMs let nothing in from outside
MISSING = {
    "containerd": NETWORKS | {"grow_attached_disk"},
    "kvm": NETWORKS | INSIDE,
    "virtualbox": NETWORKS | INSIDE | OF_ATTACHED_DISKS | {"usage"},
}


@pytest.mark.parametrize("name", catalog.REGISTRY)
def test_what_a_runtime_supports(name: str) -> None:
    runtime = catalog.load(name)
    assert (OPTIONAL | OF_ATTACHED_DISKS) - runtime.supports == MISSING[name]
    for method in OPTIONAL & runtime.supports:
        assert getattr(runtime, method) is not getattr(Runtime, method), method
    assert runtime.supports <= OPTIONAL | OF_ATTACHED_DISKS
