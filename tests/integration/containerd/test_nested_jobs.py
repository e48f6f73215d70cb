"""What BOSH's jobs do in a VM without privilege: BPM's containers, and what their scripts set."""

from pathlib import Path

import pytest

from runtimes.containerd import cgroups
from tests.support.containerd.bpm_jobs import (
    PRIVILEGED_CAPABILITIES,
    PROGRAMS,
    Job,
    has_systemd,
    in_vm,
    run,
)
from tests.support.containerd.machine import VM, Machine

MEMORY, PROCESSES, OPEN_FILES = 64 << 20, 8, 50

_EATS_MEMORY = "head -c 150000000 /dev/zero | tail -c 120000000 > /dev/null"
_FORKS = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 60 & done"
_OPENS = f"test $(ulimit -n) -gt {OPEN_FILES}"

# What a job does, and the limit that forbids it.
LIMITS = {
    "memory": Job(_EATS_MEMORY, memory=MEMORY),
    "processes": Job(_FORKS, processes=PROCESSES),
    "open files": Job(_OPENS, open_files=OPEN_FILES),
}

_ORDINARY = """
set -e
test $(id -u) = 1000
test $$ = 1
test $(ls -d /proc/[0-9]* | wc -l) -lt 5
grep -q 'NoNewPrivs:.*1' /proc/self/status
grep -q 'Seccomp:.*2' /proc/self/status
grep -q 'CapBnd:.*0000000000000000' /proc/self/status
touch /tmp/written
! touch /usr/written
! echo 1 > /proc/sys/kernel/shmmax
! unshare --user true
"""

_PRIVILEGED = """
set -e
test $(id -u) = 0
while read key value; do test $key = CapEff: && echo $value; done < /proc/self/status
cat /proc/1/comm
echo 67108865 > /proc/sys/kernel/shmmax
mount -t tmpfs none /tmp
"""


@pytest.fixture(scope="module", params=["runit", "systemd"])
def jobs(
    machine: Machine, stemcell: str, systemd: str, before: None, request: pytest.FixtureRequest
) -> VM:
    """Return a VM that has a runc."""
    properties = {"memory": 1024, "ephemeral_disk": 64, "mounts": [PROGRAMS]}
    vm = machine.create_vm(systemd if request.param == "systemd" else stemcell, properties)
    vm.wait_for_agent()  # systemd takes jobs of its bus from then on
    return vm


def test_an_ordinary_job(jobs: VM) -> None:
    done = run(jobs, Job(_ORDINARY, processes=100, open_files=500))
    assert done.returncode == 0, done.stdout + done.stderr
    # What the job was refused, the VM itself is not.
    assert in_vm(jobs, "setpriv --reuid 1000 unshare --user true").returncode == 0


def test_a_privileged_job_with_the_processes_of_the_vm(jobs: VM) -> None:
    done = run(jobs, Job(_PRIVILEGED, privileged=True, host_pid_namespace=True))
    assert done.returncode == 0, done.stdout + done.stderr
    capabilities, init = done.stdout.split()
    assert int(capabilities, 16).bit_count() == len(PRIVILEGED_CAPABILITIES) == 38
    assert init == jobs.sh("cat /proc/1/comm")


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_of_a_job_holds(jobs: VM, limit: str) -> None:
    job = LIMITS[limit]
    free, limited = run(jobs, Job(job.script)), run(jobs, job)
    assert free.returncode == 0, free.stdout + free.stderr
    assert limited.returncode != 0
    # The kernel passes memory on only from cgroups without processes of their own, which runit does
    # not make (cgroup-v2.rst, "No Internal Process Constraint").
    starts = limit != "memory" or has_systemd(jobs) or not cgroups.is_v2()
    assert ("runc" not in limited.stderr) == starts  # the job failed, or its start


def test_what_scripts_of_jobs_set(jobs: VM) -> None:
    for script in (
        "sysctl -w kernel.shmmax=67108864",  # the director's PostgreSQL
        "cp /bin/true /var/vcap/data/true && setcap cap_net_bind_service=+ep /var/vcap/data/true "
        "&& getcap /var/vcap/data/true | grep cap_net_bind_service",  # routing
    ):
        done = in_vm(jobs, script)
        assert done.returncode == 0, done.stdout + done.stderr
    assert Path("/proc/sys/kernel/shmmax").read_text() != "67108864\n"


def test_links_of_jobs(jobs: VM, machine: Machine) -> None:
    """BOSH DNS makes a dummy, Silk a VXLAN, where the kernel has them."""
    add = {kind: f"ip link add tests0 type {kind}" for kind in ("dummy", "bridge")}
    add["vxlan"] = "ip link add tests0 type vxlan id 5 dstport 4789"
    remove = "ip link delete tests0"
    known = [kind for kind, script in add.items() if _works(machine, f"{script} && {remove}")]
    assert known
    for kind in known:
        done = in_vm(jobs, f"{add[kind]} && {remove}")
        assert done.returncode == 0, f"{kind}: {done.stderr}"


def _works(machine: Machine, script: str) -> bool:
    return bool(machine.host.run("sh", "-c", script, check=False).returncode == 0)


# What is left for `privileged: true`; docs/compatibility.md says which jobs need it.
NEEDS_PRIVILEGED = {
    "sysctls of the host": "sysctl -w vm.swappiness=$(cat /proc/sys/vm/swappiness)",
    "owners of devices": "chown 0:0 /dev/fuse",
    "loop devices": "cd /var/vcap/data; truncate -s 1M image && "
    "loop=$(losetup --find --show image) && losetup --detach $loop",
    "a writable sysfs": "mkdir -p /mnt/sys && mount -t sysfs none /mnt/sys && umount /mnt/sys",
}


@pytest.fixture(scope="module")
def privileged(machine: Machine, stemcell: str, before: None) -> VM:
    return machine.create_vm(stemcell, {"privileged": True, "mounts": [PROGRAMS]})


@pytest.mark.parametrize("need", NEEDS_PRIVILEGED)
def test_what_needs_a_privileged_vm(jobs: VM, privileged: VM, need: str) -> None:
    assert in_vm(jobs, NEEDS_PRIVILEGED[need]).returncode != 0
    done = in_vm(privileged, NEEDS_PRIVILEGED[need])
    assert done.returncode == 0, done.stdout + done.stderr
