"""The doctor's checks of runtimes: one that is well and one that is not for each."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cpi.config.config import Config
from cpi.findings import FAILURE, OK, WARNING, ok, warning
from cpi.host.process import CommandFailed
from cpi.log import Log
from runtimes.containerd import cgroups, checks as container_checks, host_facts, oci_spec
from runtimes.containerd.oci_spec import Ceiling
from runtimes.libvirt import checks as libvirt_checks
from runtimes.libvirt.client import Connection
from runtimes.libvirt.kvm_device import Verdict
from runtimes.libvirt.profiles import KVM
from runtimes.libvirt.volumes import StoragePool
from tests.support.fake_config import fake_config


@pytest.mark.parametrize(
    ("controllers", "status", "word"),
    [
        (["cpu", "memory", "pids", "devices", "unified"], OK, "hybrid"),
        (["cpu", "memory", "pids", "devices"], OK, "v1"),
        (["cpu", "pids", "devices"], FAILURE, "memory"),
    ],
)
def test_cgroups_v1(
    tmp_path: Path, controllers: list[str], status: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    for name in controllers:
        (tmp_path / name).mkdir()
    finding = container_checks._cgroups(None)  # type: ignore[arg-type]
    assert (finding.status, word in finding.message) == (status, True)
    if status == FAILURE:
        assert f"mount -t cgroup -o memory cgroup {tmp_path}/memory" in finding.fix


@pytest.mark.parametrize(
    ("controllers", "status"), [("cpu io memory pids", OK), ("cpu io pids", FAILURE)]
)
def test_cgroups_v2(
    tmp_path: Path, controllers: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    (tmp_path / "cgroup.controllers").write_text(controllers)
    finding = container_checks._cgroups(None)  # type: ignore[arg-type]
    assert finding.status == status
    assert ("+memory" in finding.fix) == (status == FAILURE)


class _Client:
    """A containerd that tells this version."""

    def __init__(self, version: str) -> None:
        self.version = version

    def call(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(version=self.version)


class _Store:
    """A snapshotter whose snapshots are in a folder."""

    snapshotter = "overlayfs"

    def __init__(self, folder: Path, version: str = "1.7.2") -> None:
        self.client = _Client(version)
        self.folder = folder

    @contextmanager
    def lease(self) -> Iterator[str]:
        yield "lease"

    def prepare(self, key: str, parent: str, *, lease: str) -> list[Any]:
        return [SimpleNamespace(source="overlay", options=["x", f"upperdir={self.folder}"])]

    def remove_snapshot(self, key: str) -> None:
        return


@pytest.fixture
def subject(config: Config, tmp_path: Path) -> Any:
    return container_checks.Subject(
        "containerd", config, cast(Any, _Store(tmp_path)), cast(Any, None)
    )


@pytest.mark.parametrize(
    ("version", "status"),
    [("1.5.9", FAILURE), ("1.6.20~ds1", OK), ("v1.7.24", OK), ("2.1.0-rc.1", OK), ("3.0", FAILURE),
     ("unknown", FAILURE)],
)  # fmt: skip
def test_containerds_version(subject: Any, version: str, status: str) -> None:
    subject.store.client.version = version
    finding = container_checks._containerd(subject)
    assert finding.status == status
    assert finding.fix == ("" if status == OK else "apt-get install containerd")


def test_containerds_disk(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_checks, "_SCARCE", 0)
    assert container_checks._room(subject).status == OK
    monkeypatch.setattr(container_checks, "_SCARCE", 1 << 60)
    monkeypatch.setattr(container_checks, "_MIN_FREE", 0)
    assert container_checks._room(subject) == warning(
        container_checks._room(subject).message, "bosh clean-up --all"
    )
    monkeypatch.setattr(container_checks, "_MIN_FREE", 1 << 60)
    assert container_checks._room(subject).status == FAILURE


def test_capabilities(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    have = frozenset(oci_spec.CAPABILITIES)
    monkeypatch.setattr(host_facts, "ceiling_of_server", lambda _: Ceiling(have))
    assert container_checks._capabilities(subject).status == OK
    lacking = have - {"CAP_SYS_RESOURCE"}
    monkeypatch.setattr(host_facts, "ceiling_of_server", lambda _: Ceiling(lacking))
    finding = container_checks._capabilities(subject)
    assert (finding.status, "lacks CAP_SYS_RESOURCE," in finding.message) == (WARNING, True)


@pytest.mark.parametrize("module", [container_checks, libvirt_checks])
def test_programs_of_runtimes(subject: Any, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check = module._runc if module is container_checks else module._qemu_img
    monkeypatch.setattr(module, "run_program", lambda _: b"program 1.2\nmore\n")
    assert check(subject) == ok("program 1.2")

    def missing(_: Any) -> bytes:
        raise CommandFailed("it is not installed")

    monkeypatch.setattr(module, "run_program", missing)
    assert check(subject).status == FAILURE
    assert check(subject).fix.startswith("apt-get install ")


@pytest.mark.parametrize(
    ("reason", "accelerator", "status"),
    [("", "auto", OK), ("gone", "auto", WARNING), ("gone", "kvm", FAILURE), ("gone", "qemu", OK)],
)
def test_an_accelerator(
    tmp_path: Path, reason: str, accelerator: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = Verdict(reason, "a command" if reason else "")
    monkeypatch.setattr(libvirt_checks, "kvm_verdict", lambda *_, **__: verdict)
    config = fake_config(tmp_path, kvm={"accelerator": accelerator})
    connection = Connection("qemu:///system", Log("error"))
    finding = libvirt_checks._dev_kvm(libvirt_checks.Subject(connection, KVM, config))
    assert finding.status == status
    assert finding.fix == ("" if status == OK else "a command")


def test_a_pool_that_is_elsewhere(tmp_path: Path) -> None:
    document = f"<pool type='dir'><target><path>{tmp_path}/old</path></target></pool>"
    pool = SimpleNamespace(XMLDesc=lambda _: document)
    connection = cast(Any, SimpleNamespace(pool=lambda _: pool))

    def check(path: str, key: str) -> Any:
        volumes = StoragePool(connection, "bosh", path, cast(Any, None), Log("error"), key=key)
        subject = libvirt_checks.Subject(connection, KVM, fake_config(tmp_path), volumes)
        return libvirt_checks._storage_pool(subject)

    assert check(f"{tmp_path}/x/../old/", "kvm.pool_path").status == OK
    assert check(f"{tmp_path}/new", "").status == OK
    finding = check(f"{tmp_path}/new", "kvm.pool_path")
    assert (finding.status, f"is in {tmp_path}/old" in finding.message) == (FAILURE, True)
    assert f"set kvm.pool_path to {tmp_path}/old" in finding.fix
