"""What is written into cgroup files. Plain folders stand for the kernel's, whose v2 is not here."""

from pathlib import Path

import pytest

from cpi.errors import CloudError
from runtimes.containerd import cgroups
from runtimes.containerd.oci_spec import Limits

LIMITS = Limits(cpu=1.5, memory=512 << 20, pids=100)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    return tmp_path


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_v2(root: Path) -> None:
    (root / "cgroup.controllers").touch()
    cgroups.create("/bosh/containerd-vm-1", LIMITS)
    assert _contents(root / "bosh/containerd-vm-1") == {
        "cpu.max": "150000 100000",
        "memory.max": str(512 << 20),
        "pids.max": "100",
    }
    # Every level above passes the controllers on; the VM's own level does not matter.
    assert (root / "cgroup.subtree_control").exists()
    assert (root / "bosh/cgroup.subtree_control").exists()


def test_v1(root: Path) -> None:
    for controller in ("memory", "pids", "cpu", "devices"):
        (root / controller).mkdir()
    cgroups.create("/bosh/containerd-vm-1", LIMITS)
    assert _contents(root / "memory/bosh/containerd-vm-1") == {
        "memory.limit_in_bytes": str(512 << 20)
    }
    assert _contents(root / "cpu/bosh/containerd-vm-1")["cpu.cfs_quota_us"] == "150000"
    assert _contents(root / "devices/bosh/containerd-vm-1")["devices.deny"] == "a"


def test_privileged_may_use_any_device(root: Path) -> None:
    cgroups.create("/bosh/containerd-vm-1", Limits(privileged=True))
    assert list(root.iterdir()) == []


def test_a_missing_controller_is_named(root: Path) -> None:
    (root / "devices").mkdir()
    with pytest.raises(CloudError, match="no cgroup controller memory"):
        cgroups.create("/bosh/containerd-vm-1", LIMITS)


def test_remove_takes_all_levels_and_may_be_repeated(root: Path) -> None:
    (root / "cgroup.controllers").touch()
    (root / "bosh/containerd-vm-1/vm/init.scope").mkdir(parents=True)
    cgroups.remove("/bosh/containerd-vm-1")
    cgroups.remove("/bosh/containerd-vm-1")
    assert list((root / "bosh").iterdir()) == []
