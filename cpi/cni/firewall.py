"""Masquerading, published ports and protection of the host for VMs on bridges of ours.

All of it is in a table of nftables of our own (cpi.cni.nftables), one for each state_dir.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cpi.cni import host_firewalls, nftables
from cpi.cni.attachments import STATE, Attachment, addresses, attachments_in
from cpi.cni.nftables import Element, Guest
from cpi.host import conntrack, vm_creation
from cpi.host.layout import Layout
from cpi.host.process import CommandFailed, run
from cpi.host.reservations import Reservations
from cpi.log import Log

INSTALL = "apt-get install nftables"
_SYSCTLS = Path("/proc/sys/net")  # of this process' network namespace
_SECONDS = 30


class Firewall:
    """The rules of one CPI's VMs. The caller holds the lock of the VM whose rules it changes."""

    def __init__(self, layout: Layout, log: Log) -> None:
        self._layout = layout
        self._log = log
        self.table = nftables.table_name(layout.state_dir)

    def admit(self, vm_cid: str, attachments: Sequence[Attachment]) -> None:
        """Add the rules of a VM, or what is missing of them; idempotent. Raises CommandFailed."""
        guests = list(guests_of(vm_cid, attachments))
        if not guests:
            return
        self._layout.bridges.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._apply(nftables.adding(self.table, guests))
        for bridge in {guest.bridge for guest in guests}:
            self._admit_bridge(bridge)
        # Only now, as the table keeps VMs from the host's loopback addresses.
        for bridge in {guest.bridge for guest in guests if guest.ports}:
            route_to_loopback(bridge)
        ports = [port for guest in guests for port in guest.ports]
        if udp := {int(port["hostPort"]) for port in ports if port["protocol"] == "udp"}:
            self._forget_udp(udp)

    def dismiss(self, vm_cid: str, attachments: Sequence[Attachment]) -> None:
        """Remove the rules of a VM; idempotent. Raises CommandFailed.

        Addresses and ports that are not reserved for this VM are those of another one by now: they
        are released after this.
        """
        elements = [
            element
            for guest in guests_of(vm_cid, attachments)
            for element in self._reserved(guest).elements()
        ]
        if elements:
            self._apply(nftables.removing(self.table, elements))

    def missing(self) -> set[str]:
        """Return the VMs that lack rules, as when somebody flushed the ruleset.

        Raises CommandFailed.
        """
        owners = self.owners()
        return {
            guest.vm_cid
            for guest in self.guests()
            if not {element._replace(value="") for element in self._reserved(guest).elements()}
            <= owners.get(guest.vm_cid, set())
        }

    def admit_bridges(self) -> None:
        """Tell the host's firewalls of all bridges that VMs are on; idempotent."""
        for bridge in sorted({guest.bridge for guest in self.guests()}):
            host_firewalls.admit(bridge, self.table, self._log)

    def guests(self) -> Iterator[Guest]:
        """Yield the interfaces on bridges of ours of all VMs, except incomplete ones."""
        for folder in sorted(self._layout.vms.glob("*-vm-*")):
            if not vm_creation.is_marked(folder):
                yield from guests_of(folder.name, attachments_in(folder / STATE))

    def owners(self) -> dict[str, set[Element]]:
        """Return the elements that the table has, without their values, by VM CID.

        Raises CommandFailed.
        """
        if not self._layout.bridges.is_dir():  # no VM since the host started, so no table
            return {}
        words = ["nft", "--json", "list", "table", "inet", self.table]
        try:
            listed: dict[str, Any] = json.loads(run(words, timeout=_SECONDS, install_hint=INSTALL))
        except CommandFailed as error:
            if error.status == 1 and "No such file" in error.stderr:
                return {}
            raise
        return nftables.owners(listed)

    def remove_elements(self, elements: Sequence[Element]) -> None:
        """Remove orphaned elements, as `owners` returns them. Raises CommandFailed."""
        self._apply(nftables.deleting(self.table, elements))

    def remove_all(self) -> None:
        """Remove the table and what other firewalls were told. Raises CommandFailed."""
        for path in sorted(self._layout.bridges.glob("*")):
            host_firewalls.forget(path.name, self.table)
            path.unlink(missing_ok=True)
        self._apply(f"add table inet {self.table}\ndelete table inet {self.table}\n")

    def _forget_udp(self, ports: set[int]) -> None:
        try:
            conntrack.forget_udp(ports)
        except OSError as error:
            self._log.warn(f"UDP flows to the VM that had its ports before may last: {error}")

    def _apply(self, transaction: str) -> None:
        run(["nft", "-f", "-"], stdin=transaction.encode(), timeout=_SECONDS, install_hint=INSTALL)

    def _reserved(self, guest: Guest) -> Guest:
        """Return a guest with only those addresses and ports that are reserved for it."""
        ports = Reservations(self._layout.ports)
        folder = self._layout.addresses / guest.bridge
        return Guest(
            guest.vm_cid,
            guest.bridge,
            [ip for ip in guest.addresses if address_owner(folder / ip) == guest.vm_cid],
            guest.masquerade,
            [
                port
                for port in guest.ports
                if ports.owner(f"{port['protocol']}-{port['hostPort']}") == guest.vm_cid
            ],
        )

    def _admit_bridge(self, bridge: str) -> None:
        """Tell the host's firewalls of a bridge, once after each start of the host."""
        descriptor = os.open(self._layout.bridges / bridge, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not os.fstat(descriptor).st_size:  # else it is done
                host_firewalls.admit(bridge, self.table, self._log)
                os.write(descriptor, b"admitted\n")
        finally:
            os.close(descriptor)


def guests_of(vm_cid: str, attachments: Sequence[Attachment]) -> Iterator[Guest]:
    """Yield a VM's interfaces on bridges of ours."""
    for attachment in attachments:
        if attachment.bridge:
            yield Guest(
                vm_cid,
                attachment.bridge,
                [ip for ip, _, _ in addresses(attachment.result or {})],
                attachment.masquerade,
                attachment.runtime.get("portMappings", ()),
            )


def address_owner(path: Path) -> str:
    """Return the VM that an address is reserved for by CNI's host-local plugin, or ""."""
    try:
        return path.read_text().split()[0]
    except (OSError, IndexError):
        return ""


def route_to_loopback(bridge: str) -> None:
    """Let the host reach published ports by 127.0.0.1, whose packets then leave by the bridge."""
    with suppress(FileNotFoundError):  # of a VM whose bridge is not there (any more)
        (_SYSCTLS / f"ipv4/conf/{bridge}/route_localnet").write_text("1\n")
