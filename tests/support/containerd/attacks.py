"""What root in a VM tries against the host, as scripts.

Each names where it works, so that tests show it there and its failure elsewhere means something.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EXPOSED, PRIVILEGED, HOST = "no user namespace", "privileged", "host"

_KEY, _SECRET = "bosh-cpi-test-secret", "of the host's root"
_SYS_ADD_KEY, _SYS_KEYCTL = 248, 250  # x86_64
_KEYCTL_UNLINK, _USER_KEYRING = 9, -4


@dataclass(frozen=True)
class Attack:
    """script: a shell's, whose status 0 is success. works: where it is shown to work.

    needs: a file of the host without which its kernel lacks what is attacked.
    """

    name: str
    script: str
    works: str
    needs: str = "/proc"


def _rewrite(filesystem: str, path: str) -> str:
    """Return what mounts a file system anew and writes a file of it: what it contains already."""
    return (
        f"mkdir -p /mnt/a && mount -t {filesystem} {filesystem} /mnt/a || exit 1; "
        "mount -o remount,rw /mnt/a; "
        f'old=$(cat /mnt/a/{path}); echo "$old" > /mnt/a/{path}; status=$?; '
        "umount /mnt/a; exit $status"
    )


def _mount(filesystem: str) -> str:
    return f"mkdir -p /mnt/b && mount -t {filesystem} {filesystem} /mnt/b && umount /mnt/b"


def _python(code: str) -> str:
    return f"python3 -c '{code}'"


_SYSCALL = "import ctypes, sys; c = ctypes.CDLL(None, use_errno=True).syscall; "

_ALL = (
    Attack("core_pattern by a fresh proc", _rewrite("proc", "sys/kernel/core_pattern"), EXPOSED),
    Attack("modprobe's path by a fresh proc", _rewrite("proc", "sys/kernel/modprobe"), EXPOSED,
           "/proc/sys/kernel/modprobe"),
    Attack("vm sysctls by a fresh proc", _rewrite("proc", "sys/vm/swappiness"), EXPOSED),
    Attack("sysrq by a fresh proc", "mkdir -p /mnt/a && mount -t proc proc /mnt/a && "
           "echo h > /mnt/a/sysrq-trigger; status=$?; umount /mnt/a; exit $status", EXPOSED,
           "/proc/sysrq-trigger"),
    Attack("a fresh sysfs", _rewrite("sysfs", "kernel/mm/ksm/run"), EXPOSED),
    Attack("debugfs", _mount("debugfs"), EXPOSED),
    Attack("tracefs", _mount("tracefs"), EXPOSED),
    Attack("securityfs", _mount("securityfs"), EXPOSED),
    Attack("devtmpfs", _mount("devtmpfs"), EXPOSED),
    Attack("keyring of the host's root", _python(
        _SYSCALL + f"sys.exit(c(250, 10, {_USER_KEYRING}, b\"user\", b\"{_KEY}\", 0) < 0)"),
           EXPOSED),
    Attack("freezing a file system", "fsfreeze -f /var/vcap/data && fsfreeze -u /var/vcap/data",
           EXPOSED),
    Attack("remounting a superblock", "mount -o remount,errors=continue /var/vcap/data", EXPOSED),
    Attack("making nodes of devices", "mknod /root/disk b 7 0; s=$?; rm -f /root/disk; exit $s",
           EXPOSED),
    Attack("a disk of the host", "mknod /root/disk b 7 0 && python3 -c "
           "'open(\"/root/disk\", \"rb\")'; s=$?; rm -f /root/disk; exit $s", PRIVILEGED),
    Attack("modules", _python(  # 2: ENOENT, so it was allowed
        _SYSCALL + "c(176, b\"nosuch\", 0); sys.exit(ctypes.get_errno() != 2)"), HOST,
           "/proc/modules"),
    Attack("the kernel's log", _python(_SYSCALL + "sys.exit(c(103, 10, None, 0) < 0)"), HOST),
    # Every cgroup namespace hides it, whatever the VM's capabilities (cgroup_namespaces(7)).
    Attack("release_agent of a cgroup hierarchy", "d=$(mktemp -d) && mount -t cgroup -o pids c $d "
           '|| exit 1; old=$(cat $d/release_agent) && echo "$old" > $d/release_agent; s=$?; '
           "umount $d; rmdir $d; exit $s", HOST, "/sys/fs/cgroup/pids/release_agent"),
    Attack("making the guests' socket's folder writable",
           "mount -o remount,bind,rw /var/vcap/bosh-cpi && touch /var/vcap/bosh-cpi/mine "
           "&& rm /var/vcap/bosh-cpi/mine", EXPOSED),
    # On cgroup v2 no cgroup namespace can (cgroup-v2.rst, nsdelegate).
    Attack("raising the VM's own limits", "cd /sys/fs/cgroup/memory; "
           "echo -1 > memory.memsw.limit_in_bytes; echo -1 > memory.limit_in_bytes", EXPOSED,
           "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)  # fmt: skip
ATTACKS = tuple(attack for attack in _ALL if Path(attack.needs).exists())


@contextmanager
def secret() -> Iterator[None]:
    """Keep a key in the user keyring of the host's root."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    data = _SECRET.encode()
    key = syscall(_SYS_ADD_KEY, b"user", _KEY.encode(), data, len(data), _USER_KEYRING)
    assert key > 0
    try:
        yield
    finally:
        assert syscall(_SYS_KEYCTL, _KEYCTL_UNLINK, key, _USER_KEYRING) == 0
