"""Restart of a private host: only the content of its disks stays."""

import sys

from testing.hosts.private_host import PrivateHost, remove_cgroups
from testing.patience import wait_for

# Kills every process of the host except its init and those that run this; prints their number.
_KILL = """
import os, signal
mine = {1, os.getpid(), os.getppid()}
others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in mine]
for pid in others:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
print(len(others))
"""


def reboot(host: PrivateHost) -> None:
    """Restart a private host, as after a loss of power; start only containerd."""
    host.kill_containerd()
    wait_for(lambda: host.run(sys.executable, "-c", _KILL).stdout == "0\n", "the end of all")
    _umount_all(host)
    for folder in (str(host.folder / "run"), str(host.folder / "containerd/state")):
        host.run("rm", "-rf", "--one-file-system", folder)
    host.run("find", "/run", "-xdev", "-mindepth", "1", "-delete")
    for link in host.run("ls", "/sys/class/net").stdout.split():
        host.run("ip", "link", "delete", link, check=False)  # one end takes the other with it
    host.run("nft", "flush", "ruleset")  # also what iptables has made
    remove_cgroups(host.cgroup)
    wait_for(lambda: not host.loops(), "the loop devices to go")
    host.start_containerd()


def _umount_all(host: PrivateHost) -> None:
    """Unmount what is mounted below the host's folder and /run, the last first."""
    lines = host.run("cat", "/proc/self/mountinfo").stdout.splitlines()
    targets = [line.split()[4] for line in lines]
    ours = (f"{host.folder}/", "/run/")
    for target in reversed([target for target in targets if target.startswith(ours)]):
        host.run("umount", "--lazy", target)
