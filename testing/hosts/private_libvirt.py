"""libvirt's daemons on a private host, with their own folders."""

import os
from contextlib import suppress
from pathlib import Path

from testing.hosts.daemon import Daemon
from testing.hosts.notify import started
from testing.hosts.private_host import PrivateHost, cgroup_hierarchies
from testing.patience import wait_for

# Debian's libvirt was compiled to use these; no option changes them.
_FOLDERS = ("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")
# On a machine whose KVM works, tests may use it: BOSH_CPI_TEST_KVM=1.
_KVM = "BOSH_CPI_TEST_KVM"

# A domain's own /dev cannot be made where something is mounted over /dev/kvm.
_QEMU = "namespaces = []\n"

_LIBVIRTD = """\
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
log_outputs = "3:stderr"
"""


class Libvirt:
    """Start with `with`; then `qemu:///system` works on the host.

    VMs outlive the daemon, as they do on any machine, and end with the host.
    """

    def __init__(self, host: PrivateHost, settings: str = "", arguments: tuple[str, ...] = ()):
        """Prepare libvirt; settings: more lines of libvirtd.conf; arguments: of libvirtd."""
        self.host = host
        self.folder = host.folder / "libvirt"
        self._settings = settings
        self._arguments = arguments
        self._daemons: list[Daemon] = []
        self._mounted: list[str] = []

    def __enter__(self) -> "Libvirt":
        self.folder.mkdir()
        # QEMU's user needs its files.
        self.host.folder.chmod(0o711)
        try:
            for folder in _FOLDERS:
                self._mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
            self.host.run("mkdir", "/var/lib/libvirt/dnsmasq")  # libvirt's networks need it
            # Where KVM is there and does not work, libvirt would ask QEMU again at each call.
            if Path("/dev/kvm").exists() and not os.environ.get(_KVM):
                nothing = self.folder / "no-kvm"
                nothing.touch(mode=0o600)  # not for QEMU's user
                self._mount("--bind", str(nothing), "/dev/kvm")
            Path(self.folder / "qemu.conf").write_text(_QEMU)
            self.host.run("cp", str(self.folder / "qemu.conf"), "/etc/libvirt/qemu.conf")
            (self.folder / "libvirtd.conf").write_text(_LIBVIRTD + self._settings)
            self._daemons.append(started(self.host, "virtlogd", folder=self.folder))
            self.start()
        except BaseException:
            self.stop_all()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    def start(self) -> None:
        """Start libvirtd."""
        argv = ["libvirtd", "--config", str(self.folder / "libvirtd.conf"), *self._arguments]
        self._daemons.append(started(self.host, *argv, folder=self.folder))

    def stop(self) -> None:
        """Stop libvirtd; the VMs run on."""
        self._daemons.pop().stop()

    def restart(self) -> None:
        """Restart libvirtd; the VMs run on."""
        self.stop()
        self.start()

    def kill_guests(self) -> None:
        """Kill all VMs, as a loss of power does."""
        self.host.run("sh", "-c", "kill -KILL $(cat /run/libvirt/qemu/*.pid)")

    def forget_boot(self) -> None:
        """Make the next start of libvirtd the first after a boot."""
        self.host.run("sh", "-c", "rm -f /run/libvirt/*/autostarted /run/libvirt/*/*.xml")

    def stop_all(self) -> None:
        """Stop the daemons with SIGTERM, and end the VMs."""
        while self._daemons:
            self._daemons.pop().stop()
        self._remove_guests()
        while self._mounted:
            self.host.run("umount", "--lazy", self._mounted.pop())

    def _remove_guests(self) -> None:
        """End the VMs, and remove the cgroups that libvirt made outside of the host's."""
        files = self.host.run("find", "/run/libvirt/qemu", "-name", "*.pid", check=False).stdout
        if files:
            self.kill_guests()
            qemu = ("pgrep", "qemu-system")
            wait_for(lambda: self.host.run(*qemu, check=False).returncode, "the end of the VMs")
        # Not by the names of the VMs: one that ended while libvirtd was away has left its own too.
        for hierarchy in cgroup_hierarchies():
            for folder in (hierarchy / "machine").glob("qemu-*.libvirt-qemu"):
                for path, _, _ in os.walk(folder, topdown=False):
                    with suppress(OSError):  # a VM of another host runs in it
                        os.rmdir(path)
            with suppress(OSError):  # it has cgroups of other hosts
                (hierarchy / "machine").rmdir()

    def _mount(self, *words: str) -> None:
        self.host.run("mount", *words)
        self._mounted.append(words[-1])
