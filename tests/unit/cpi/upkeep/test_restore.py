"""Bringing all VMs back: each under its lock, one's failure no hindrance to the others."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpi.cni.attachments import Attachment, as_before
from cpi.errors import CloudError
from cpi.host import locks
from cpi.log import Log
from cpi.upkeep.restore import restore_all
from testing.patience import PATIENCE
from tests.support.fake_config import fake_config, fake_registered
from tests.support.fake_runtime import FakeRuntime

VMS = [f"fake-vm-{number}" for number in range(6)]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with fake_registered():
        yield


def folders(folder: Path, *names: str) -> None:
    for name in names:
        (folder / "state/vms" / name).mkdir(parents=True)


def test_every_vm_is_asked_once_under_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders(tmp_path, *VMS, "other-vm-1", "..x", "fake-disk-1")
    run_dir = str(tmp_path / "run")
    held: dict[str, bool] = {}

    def restore(_self: FakeRuntime, vm_cid: str) -> bool:
        assert vm_cid not in held
        held[vm_cid] = locks.is_held(run_dir, vm_cid)
        return vm_cid != VMS[3]

    monkeypatch.setattr(FakeRuntime, "restore", restore)
    done = restore_all(fake_config(tmp_path), Log("error"))
    assert held == dict.fromkeys(VMS, True)
    assert done.back == [vm for vm in VMS if vm != VMS[3]]
    assert done.untouched == [VMS[3]]
    assert done.failed == {}


def test_failures_are_told_and_keep_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders(tmp_path, *VMS)

    def restore(_self: FakeRuntime, vm_cid: str) -> bool:
        if vm_cid == VMS[0]:
            raise CloudError("its disk is missing")
        if vm_cid == VMS[1]:
            raise ZeroDivisionError("oh")
        return True

    monkeypatch.setattr(FakeRuntime, "restore", restore)
    log = Log("error")
    done = restore_all(fake_config(tmp_path), log)
    assert done.back == VMS[2:]
    assert done.failed == {VMS[0]: "its disk is missing", VMS[1]: "ZeroDivisionError: oh"}
    assert f"{VMS[0]} cannot be brought back: its disk is missing" in log.text
    assert done.summary == "4 VMs brought back, 0 needed nothing, 2 failed"


def test_a_vm_that_is_deleted_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders(tmp_path, VMS[0])
    monkeypatch.setattr(FakeRuntime, "restore", lambda *_: pytest.fail("it is gone"))
    log = Log("error")
    waiting = threading.Event()

    def info(_self: Log, message: str) -> None:
        if "waiting" in message:
            waiting.set()

    monkeypatch.setattr(Log, "info", info)
    with locks.hold(str(tmp_path / "run"), VMS[0], log=log):
        thread = threading.Thread(target=restore_all, args=(fake_config(tmp_path), log))
        thread.start()
        assert waiting.wait(PATIENCE)
        (tmp_path / "state/vms" / VMS[0]).rmdir()
    thread.join()
    assert log.text == ""


def test_nothing_to_bring_back(tmp_path: Path) -> None:
    assert restore_all(fake_config(tmp_path), Log("error")).back == []


def test_an_interface_is_asked_for_as_it_was() -> None:
    result = {
        "interfaces": [{"name": "veth1"}, {"name": "eth0", "mac": "aa:bb", "sandbox": "/n"}],
        "ips": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}, {"address": "fd00::5/64"}],
    }
    plugins = ({"type": "bridge", "args": {"cni": {"labels": []}, "own": 1}}, {"type": "portmap"})
    had = Attachment("net", "eth0", plugins, {"portMappings": [1]}, "IgnoreUnknown=true", result)
    wanted = as_before(had)
    ips = ["10.0.0.5/24", "fd00::5/64"]
    assert wanted.runtime == {"portMappings": [1], "ips": ips, "mac": "aa:bb"}
    assert wanted.arguments == "IgnoreUnknown=true;MAC=aa:bb"
    assert wanted.plugins[0]["args"] == {"cni": {"labels": [], "ips": ips}, "own": 1}
    assert wanted.plugins[1]["args"] == {"cni": {"ips": ips}}
    assert had.plugins == plugins
