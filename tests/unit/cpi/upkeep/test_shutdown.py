"""Shutting all VMs down: at the same time, each under its lock, and one's failure alone."""

import threading
from pathlib import Path

import pytest

from cpi.config.config import Config
from cpi.errors import CloudError
from cpi.host import locks
from cpi.log import Log
from cpi.upkeep.shutdown import shut_down_all
from testing.patience import PATIENCE
from tests.support.fake_runtime import FakeRuntime

VMS = [f"fake-vm-{number}" for number in range(6)]


@pytest.fixture(autouse=True)
def _folders(config: Config) -> None:
    for name in (*VMS, "other-vm-1", "..x"):
        (Path(config.text("state_dir")) / "vms" / name).mkdir(parents=True)


def test_all_at_the_same_time_under_their_locks(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(len(VMS), timeout=PATIENCE)
    held = {}

    def shut_down(_self: FakeRuntime, vm_cid: str, seconds: float) -> None:
        held[vm_cid] = (locks.is_held(config.text("run_dir"), vm_cid), seconds)
        together.wait()

    monkeypatch.setattr(FakeRuntime, "shut_down", shut_down)
    done = shut_down_all(config, Log("error"), 7)
    assert held == dict.fromkeys(VMS, (True, 7))
    assert (done.ended, done.failed) == (VMS, {})


def test_a_failure_does_not_block_the_others(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shut_down(_self: FakeRuntime, vm_cid: str, seconds: float) -> None:
        if vm_cid == VMS[0]:
            raise CloudError("it does not answer")

    monkeypatch.setattr(FakeRuntime, "shut_down", shut_down)
    log = Log("error")
    done = shut_down_all(config, log, 7)
    assert (done.ended, done.failed) == (VMS[1:], {VMS[0]: "it does not answer"})
    assert done.summary == "5 VMs shut down, 1 failed"
    assert f"{VMS[0]} cannot be shut down: it does not answer" in log.text
