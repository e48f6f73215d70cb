"""A containerd that is stopped, in the middle of its work too: calls end, and work again after."""

import gzip
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testing.patience import wait_for
from tests.support.containerd.machine import Machine, failing
from tests.support.stemcells.small_stemcells import ROOTFS, tar

MIB = 1 << 20


@contextmanager
def stopped(machine: Machine) -> Iterator[None]:
    pid = machine.host.containerd_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def impatient(machine: Machine) -> Path:
    """Return a configuration with a short wait for containerd."""
    containerd = {**machine.host.config()["containerd"], "timeout": 2}
    return machine.host.write_config("impatient.json", containerd=containerd)


def test_short_calls(machine: Machine, stemcell: str, impatient: Path) -> None:
    vm = machine.create_vm(stemcell)
    with stopped(machine):
        for method in ("has_vm", "reboot_vm", "delete_vm"):
            error = failing(lambda method=method: machine.call(method, vm.cid, config=impatient))  # type: ignore[misc]
            assert error.ok_to_retry, method
            assert "containerd" in error.message
    assert machine.call("has_vm", vm.cid)
    vm.delete()


def test_a_stemcells_import(
    machine: Machine, impatient: Path, tmp_path: Path, untouched: None
) -> None:
    image = tmp_path / "image"
    image.write_bytes(gzip.compress(tar({**ROOTFS, "./var/more": os.urandom(192 * MIB)}), 0))
    answers: list[Any] = []

    def create() -> None:
        answers.append(machine.host.cpi("create_stemcell", str(image), {}, config=impatient))

    call = threading.Thread(target=create)
    call.start()
    wait_for(lambda: machine.ctr("content", "active").splitlines()[1:] or answers, "its content")
    with stopped(machine):
        call.join()
    (answer,) = answers
    if answer["error"] is None:  # it was faster
        machine.call("delete_stemcell", answer["result"])
        pytest.fail("the import ended before containerd was stopped; make the image larger")
    assert answer["error"]["ok_to_retry"], answer
    assert "containerd" in answer["error"]["message"]
    stemcell = machine.call("create_stemcell", str(image), {})
    machine.call("delete_stemcell", stemcell)
    machine.bosh_cpi("gc", "--yes")  # while it was stopped nothing could be undone
