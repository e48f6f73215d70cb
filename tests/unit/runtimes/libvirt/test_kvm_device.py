"""Whether QEMU's user can use /dev/kvm: what is tried, how often, and what is said."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cpi.host.layout import Layout
from cpi.log import Log
from runtimes.libvirt import kvm_device
from runtimes.libvirt.kvm_device import Verdict

Try = Callable[..., Verdict]

# Stands in for QEMU, whose tries it counts.
_QEMU = """\
#!/bin/sh
echo x >> {count}
{script}
"""


class Qemu:
    """A QEMU that does as the test says."""

    def __init__(self, folder: Path) -> None:
        self.path, self._count = folder / "qemu", folder / "count"
        self.does("exit 43")

    def does(self, script: str) -> None:
        self.path.write_text(_QEMU.format(count=self._count, script=script))
        self.path.chmod(0o755)

    @property
    def tries(self) -> int:
        return len(self._count.read_text().split()) if self._count.exists() else 0


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kvm"
    path.touch(0o600)
    monkeypatch.setattr(kvm_device, "DEVICE", path)
    return path


@pytest.fixture
def qemu(tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch) -> Qemu:
    stand_in = Qemu(tmp_path)
    monkeypatch.setattr(kvm_device, "_qemu", lambda: str(stand_in.path))
    return stand_in


@pytest.fixture
def verdict(tmp_path: Path) -> Try:
    user = f"+{os.getuid()}:+{os.getgid()}"
    capabilities = (
        "<capabilities><host><secmodel><model>apparmor</model></secmodel><secmodel>"
        f"<model>dac</model><baselabel type='kvm'>{user}</baselabel></secmodel></host>"
        "</capabilities>"
    )
    connection = SimpleNamespace(raw=SimpleNamespace(getCapabilities=lambda: capabilities))
    layout = Layout(tmp_path / "state", tmp_path / "run")
    return lambda model="host", **options: kvm_device.verdict(
        cast(Any, connection), layout, model, Log("error"), **options
    )


DENIED = "echo 'Could not access KVM kernel module: Permission denied' >&2; exit 1"


def test_a_device_that_works_is_tried_once(qemu: Qemu, verdict: Try) -> None:
    assert [verdict(), verdict()] == [Verdict(), Verdict()]
    assert qemu.tries == 1
    verdict(again=True)
    assert qemu.tries == 2
    verdict("qemu64")
    assert qemu.tries == 3


def test_a_device_that_is_not_there(device: Path, verdict: Try) -> None:
    device.unlink()
    assert "is not there" in verdict().reason
    assert "modprobe kvm_intel" in verdict().fix


def test_a_device_that_qemus_user_cannot_open(
    qemu: Qemu, device: Path, verdict: Try, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    qemu.does(DENIED)
    shown, name = verdict(), kvm_device._name_of(os.getuid())
    assert shown.reason == f"{device} cannot be opened by QEMU's user {name}"
    assert 'KERNEL=="kvm"' in shown.fix
    assert f"chmod 660 {device}" in shown.fix
    device.chmod(0o660)  # so it is tried again
    monkeypatch.setattr(kvm_device, "getgrgid", lambda _: SimpleNamespace(gr_name="kvm"))
    group = os.stat(device).st_gid
    assert verdict().fix.startswith(f"usermod --append --groups kvm {name}") == (group != 0)
    assert qemu.tries == 2


def test_membership_of_a_group_is_noticed(
    qemu: Qemu, verdict: Try, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    qemu.does(DENIED)
    assert verdict().reason
    assert verdict().reason
    real = os.getgrouplist
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [*real(name, gid), gid + 4242])
    verdict()
    assert qemu.tries == 2


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'qemu: error: failed to set MSR 0x10a' >&2; kill -ABRT $$", "failed to set MSR"),
        ("kill -SEGV $$", "signal 11"),
        ("echo 'failed to initialize kvm: Device or resource busy' >&2; exit 1", "resource busy"),
        ("echo 'isa-debug-exit: no such device' >&2; exit 1", ""),
    ],
)
def test_a_qemu_that_fails(qemu: Qemu, verdict: Try, script: str, reason: str) -> None:
    qemu.does(script)
    assert reason in verdict().reason
    assert bool(verdict().reason) == bool(reason)


def test_a_kernel_that_hangs_is_tried_once(
    qemu: Qemu, verdict: Try, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm_device, "_SECONDS", 0.5)
    qemu.does("exec sleep 60")
    assert "hangs" in verdict().reason
    assert "modprobe --remove" in verdict().fix
    assert qemu.tries == 1
