"""`bosh-cpi stop --all`: VMs shut down by themselves, and are restored."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.containerd.machine import VM, Machine

# What ends a job by SIGTERM leaves a file.
_JOB = """\
cat >/root/job <<'END'
#!/bin/sh
trap 'echo ended >/root/ended; exit 0' TERM
touch /root/started
while :; do sleep 0.1; done
END
chmod +x /root/job
"""
_START = "setsid /root/job >/dev/null 2>&1 </dev/null &"
_UNIT = (
    "printf '[Service]\\nExecStart=/root/job\\nKillMode=mixed\\n' "
    ">/etc/systemd/system/job.service; systemctl daemon-reload; systemctl start job"
)
_STARTED = "for i in $(seq 100); do [ -e /root/started ] && exit 0; sleep 0.1; done; exit 1"


@pytest.fixture(scope="module")
def machine(other_machine: Machine) -> Machine:
    return other_machine


@pytest.fixture(scope="module")
def runit(machine: Machine, runit_image: Path) -> str:
    return str(machine.call("create_stemcell", str(runit_image), {}))


@pytest.fixture(scope="module")
def with_systemd(machine: Machine, systemd_image: Path) -> str:
    return str(machine.call("create_stemcell", str(systemd_image), {}))


@pytest.fixture
def make(machine: Machine) -> Iterator[Callable[[str], VM]]:
    before = machine.leftovers()
    yield machine.create_vm
    machine.delete_all()
    assert machine.leftovers() == before


def test_jobs_end_by_themselves_and_vms_are_restored(
    machine: Machine, runit: str, with_systemd: str, make: Callable[[str], VM]
) -> None:
    vms = [make(runit), make(with_systemd)]
    for vm, start in zip(vms, (_START, _UNIT), strict=True):
        vm.wait_for_agent()
        vm.sh(_JOB + start)
        vm.sh(_STARTED)
    done = machine.bosh_cpi("stop", "--all", "--timeout", "90", "--json")
    assert json.loads(done.stdout) == {"stopped": sorted(vm.cid for vm in vms), "failed": {}}
    assert "did not shut down" not in done.stderr
    assert machine.leftovers()["tasks"] == []
    assert machine.call("has_vm", vms[0].cid) is True

    done = machine.bosh_cpi("restore", "--json")
    assert json.loads(done.stdout)["restored"] == sorted(vm.cid for vm in vms)
    for vm in vms:
        vm.wait_for_agent()
        assert vm.sh("cat /root/ended") == "ended"


def test_what_does_not_end_is_killed_at_the_deadline(
    machine: Machine, runit: str, make: Callable[[str], VM]
) -> None:
    vm = make(runit)
    vm.wait_for_agent()
    vm.sh("trap '' TERM; setsid sleep 1000 >/dev/null 2>&1 </dev/null &")
    done = machine.bosh_cpi("stop", "--all", "--timeout", "1")
    assert f"{vm.cid} did not shut down within 1 s" in done.stderr
    assert machine.leftovers()["tasks"] == []


def test_a_vm_that_had_ended_by_itself_is_not_restored(
    machine: Machine, runit: str, make: Callable[[str], VM]
) -> None:
    vm = make(runit)
    machine.ctr("tasks", "kill", "--signal", "KILL", vm.cid)
    machine.bosh_cpi("stop", "--all")
    assert json.loads(machine.bosh_cpi("restore", "--json").stdout)["restored"] == []
