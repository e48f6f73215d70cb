"""What a VM may take of a host with cgroup v2, where containerd itself has no limits."""

from collections.abc import Iterator

import pytest

from tests.support.installed_cpi import InstalledCpi


@pytest.fixture(scope="module")
def vm(cpi: InstalledCpi, systemd: str) -> Iterator[str]:
    cid, address = cpi.create_vm(systemd, memory=256, cpu=0.5, pids=200)
    cpi.wait_for_agent(address)
    yield cid
    cpi.delete_all()


def test_limits_are_set(cpi: InstalledCpi, vm: str) -> None:
    folder = cpi.guest.sh(f"find /sys/fs/cgroup -type d -name {vm}")
    read = f"cd {folder} && cat memory.max cpu.max pids.max"
    assert cpi.guest.sh(read).splitlines() == [str(256 << 20), "50000 100000", "200"]


def test_out_of_memory_the_hosts_processes_do_not_die_first(cpi: InstalledCpi, vm: str) -> None:
    """The daemon's own -999 must not reach VMs, neither by their start nor by exec."""
    scores = {
        cpi.guest.sh(f"cat /proc/{pid}/comm /proc/{pid}/oom_score_adj | xargs")
        for pid in cpi.processes(vm)
    }
    # systemd protects a few of its own, such as dbus.
    assert not [score for score in scores if int(score.split()[-1]) < -950]
    assert cpi.guest.sh(f"cat /proc/{cpi.init_of(vm)}/oom_score_adj") == "0"
    words = ("exec", "--no-terminal", vm, "--", "cat", "/proc/self/oom_score_adj")
    assert cpi.bosh_cpi(*words).stdout.strip() == "0"


def test_programs_that_close_every_descriptor_do_not_hang(cpi: InstalledCpi, vm: str) -> None:
    """RLIMIT_NOFILE is not containerd's infinity."""
    done = cpi.bosh_cpi("exec", "--no-terminal", vm, "--", "sh", "-c", "ulimit -Sn; ulimit -Hn")
    assert all(int(limit) <= 1 << 20 for limit in done.stdout.split())
    limits = cpi.guest.sh(f"grep 'open files' /proc/{cpi.init_of(vm)}/limits").split()
    assert int(limits[-2]) <= 1 << 20


def test_a_unit_may_have_all_of_a_vms_processes(cpi: InstalledCpi, vm: str) -> None:
    """systemd's own default for a unit is 15 % of them; the agent's unit has all of BOSH's jobs."""
    assert cpi.inside(vm, "systemctl show --property TasksMax --value bosh-agent") == "200"
    script = "systemd-run --quiet --pipe --wait sh -c "
    # systemd ends them with the unit. A fork that fails ends the shell.
    script += "'for i in $(seq 100); do sleep 600 & done; echo started'"
    assert cpi.inside(vm, script) == "started"


def test_root_in_a_vm_cannot_lift_its_limits(cpi: InstalledCpi, vm: str) -> None:
    lift = "for f in /sys/fs/cgroup/{memory,cpu,pids}.max; do echo max >$f; done"
    cpi.inside(vm, f"bash -c '{lift}' 2>/dev/null", check=False)
    fork = "for i in $(seq 250); do sleep 20 & done; kill $(jobs -p)"
    assert "fork" in cpi.inside(vm, f"({fork}) 2>&1", check=False)
    eat = "a=[]\nwhile len(a) < 400: a.append(bytearray(b'x') * (1 << 20))"
    assert "fits" not in cpi.inside(vm, f'python3 -c "{eat}" && echo fits', check=False)
    assert cpi.inside(vm, "echo alive") == "alive"
