"""Limits of cloud_properties hold: a VM cannot take more than it was given."""

from collections.abc import Callable

from tests.support.containerd.machine import VM, Machine

# Writes zeros into memory, 1 MiB after the other.
_EAT = "exec python3 -c \"a=[]\nwhile len(a) < {mib}: a.append(bytearray(b'x') * (1 << 20))\""


def test_memory(make_vm: Callable[..., VM]) -> None:
    vm = make_vm(properties={"memory": 128})
    assert vm.sh(f"({_EAT.format(mib=64)}) && echo fits", check=False) == "fits"
    assert vm.sh(f"({_EAT.format(mib=400)}) && echo fits", check=False) != "fits"
    assert vm.sh("echo alive") == "alive"


def test_root_in_the_vm_cannot_lift_its_limits(make_vm: Callable[..., VM]) -> None:
    vm = make_vm(properties={"memory": 128, "pids": 60, "cpu": 0.5})
    vm.wait_for_agent()
    vm.sh(
        "cd /sys/fs/cgroup; for f in memory/memory.memsw.limit_in_bytes memory.max "
        "memory/memory.limit_in_bytes pids/pids.max pids.max cpu/cpu.cfs_quota_us cpu.max; do "
        "if [ -e $f ]; then echo -1 > $f || echo max > $f; fi; done 2>/dev/null; "
        "echo a > devices/devices.allow",
        check=False,
    )
    assert vm.sh(f"({_EAT.format(mib=400)}) && echo fits", check=False) != "fits"
    script = "for i in $(seq 80); do sleep 60 >/dev/null 2>&1 & done; kill $(jobs -p)"
    assert "fork" in vm.sh(f"({script}) 2>&1", check=False)
    open_it = "{ mknod /root/disk b 7 0 && head -c1 /root/disk; } 2>&1"
    assert "ermi" in vm.sh(open_it, check=False)  # not permitted, or permission denied


def test_ephemeral_disk(make_vm: Callable[..., VM]) -> None:
    vm = make_vm(properties={"ephemeral_disk": 64})
    fill = "dd if=/dev/zero of=/var/vcap/data/file bs=1M count={} 2>&1"
    assert "No space left on device" in vm.sh(fill.format(80), check=False)
    assert int(vm.sh("du -m /var/vcap/data/file | cut -f1")) <= 64
    vm.sh("rm /var/vcap/data/file")
    vm.sh(fill.format(40))


def test_pids(make_vm: Callable[..., VM]) -> None:
    vm = make_vm(properties={"pids": 40})
    vm.wait_for_agent()
    script = "for i in $(seq 60); do sleep 60 >/dev/null 2>&1 & done; kill $(jobs -p)"
    assert "fork" in vm.sh(f"({script}) 2>&1", check=False)


def test_cpu(make_vm: Callable[..., VM]) -> None:
    vm = make_vm(properties={"cpu": 0.5})
    quota = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cat /sys/fs/cgroup/cpu.max"
    assert vm.sh(quota).split()[0] == "50000"


def test_calculated_properties_are_taken(machine: Machine, make_vm: Callable[..., VM]) -> None:
    wanted = {"ram": 256, "cpu": 1, "ephemeral_disk_size": 64}
    properties = machine.call("calculate_vm_cloud_properties", wanted)
    assert properties == {"cpu": 1, "memory": 256, "ephemeral_disk": 64}
    make_vm(properties=properties)
