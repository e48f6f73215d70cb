"""A private host with libvirt and the CPI, as tests use it: guests, domains, leftovers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testing.hosts.private_libvirt import Libvirt
from tests.support.containerd.machine import VM, Machine

# Guests under plain emulation, and cheap ones.
KVM = {"accelerator": "qemu", "memory": 192, "ephemeral_disk": 128, "shutdown_timeout": 0}


@dataclass
class Guest(VM):
    """A full VM; its stand-in agent runs scripts, the only way into it."""

    def sh(self, script: str, check: bool = True) -> str:
        answer = self.agent("stand_in_shell", script)
        if check and answer["status"]:
            raise AssertionError(f"{script!r} failed: {answer['output']}")
        return str(answer["output"]).strip()

    def wait_for_agent(self) -> None:
        """Wait until the agent listens; say what the VM printed if it never does."""
        try:
            super().wait_for_agent()
        except TimeoutError as error:
            console = self.machine.bosh_cpi("console", self.cid, check=False).stdout[-8000:]
            neighbours = self.machine.host.run("ip", "neigh").stdout
            raise TimeoutError(f"{error}\n{neighbours}\n{console}") from None


class KvmMachine(Machine):
    """A private host with libvirt, on which the CPI creates KVM VMs by default."""

    def __init__(self, libvirt: Libvirt) -> None:
        super().__init__(libvirt.host)
        self.libvirt = libvirt
        self.configure()

    def configure(self, kvm: dict[str, Any] | None = None, **changes: Any) -> Path:
        """Write the configuration, with changes."""
        changes = {"runtime": "kvm", **changes}
        return self.host.write_config(kvm={**KVM, **(kvm or {})}, **changes)

    def create_guest(self, stemcell: str, **options: Any) -> Guest:
        """Create a VM; return it as a guest with an agent."""
        vm = self.create_vm(stemcell, **options)
        self.vms.remove(vm)
        guest = Guest(self, vm.cid, vm.networks)
        self.vms.append(guest)
        return guest

    def virsh(self, *words: str) -> str:
        """Run libvirt's command line; return its stdout."""
        return str(self.host.run("virsh", "--quiet", "--connect", "qemu:///system", *words).stdout)

    def domains(self) -> list[str]:
        return sorted(self.virsh("list", "--all", "--name").split())

    def volumes(self) -> list[str]:
        """Return the files in the pool's folder, also those unknown to libvirt."""
        folder = self.host.state / "kvm"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def leftovers(self) -> dict[str, Sequence[str]]:
        """Return all parts of VMs and disks on the host, without stemcells and bridges."""
        leftovers = super().leftovers()
        kept = (".stemcell", ".json")
        pool = str(self.host.state / "kvm")
        files = [path for path in leftovers["files"] if not path.startswith(pool)]
        links = json.loads(self.host.run("ip", "-json", "link").stdout)
        volumes = [name for name in self.volumes() if not name.endswith(kept)]
        taps = sorted(
            link["ifname"] for link in links if link["ifname"].startswith(("vnet", "bvm"))
        )
        qemu = self.host.run("pgrep", "--list-full", "qemu-system", check=False).stdout
        return {
            **leftovers,
            "files": files,
            "domains": self.domains(),
            "volumes": volumes,
            "taps": taps,
            "qemu": qemu.splitlines(),
        }
