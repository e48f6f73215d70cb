"""Masquerading, published ports, and what VMs on bridges of ours may send and reach.

All of it is in two tables of nftables of our own for each state_dir: one for packets
(cpi.cni.nftables) and one for frames (cpi.cni.senders), changed in one transaction.
"""

import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpi.cni import host_firewalls, nftables, senders
from cpi.cni.attachments import STATE, Attachment, addresses, attachments_in, mac_of, port_of
from cpi.cni.nftables import Element, Guest
from cpi.cni.senders import Port
from cpi.errors import CloudError
from cpi.host import conntrack, iproute, kernel, vm_creation
from cpi.host.layout import Layout
from cpi.host.process import CommandFailed, run
from cpi.host.reservations import Reservations
from cpi.log import Log

if TYPE_CHECKING:
    from cpi.config.config import Config

INSTALL = "apt-get install nftables"
_SYSCTLS = Path("/proc/sys/net")  # of this process' network namespace
_SECONDS = 30


class Firewall:
    """The rules of one CPI's VMs. The caller holds the lock of the VM whose rules it changes."""

    def __init__(self, layout: Layout, log: Log, *, host_access: bool = True) -> None:
        """host_access: whether VMs reach services of the host (network.host_access)."""
        self._layout = layout
        self._log = log
        self._host_access = host_access
        self.table = nftables.table_name(layout.state_dir)

    @classmethod
    def of(cls, config: "Config", log: Log) -> "Firewall":
        """Return the firewall that a configuration wants."""
        return cls(Layout.of(config), log, host_access=config.flag("network.host_access"))

    def admit(
        self, vm_cid: str, attachments: Sequence[Attachment], stale: Sequence[str] = ()
    ) -> None:
        """Add the rules of a VM, or what is missing of them; idempotent.

        stale: names of ports that it had before. Raises CommandFailed; CloudError when it is not
        known what a port may send.
        """
        guests, ports = guests_of(vm_cid, attachments), ports_of(vm_cid, attachments)
        if not guests:
            return
        if len(ports) < sum(is_policed(attachment) for attachment in attachments):
            raise CloudError(
                f"cannot limit what {vm_cid} sends: the CNI plugin bridge did not name the VM's "
                "port or MAC"
            )
        self._layout.bridges.mkdir(parents=True, exist_ok=True, mode=0o700)
        names = {port.name for port in ports}
        self._apply(
            nftables.adding(self.table, guests, host_access=self._host_access)
            + senders.removing(self.table, [name for name in stale if name not in names])
            + senders.adding(self.table, ports)
        )
        for bridge in {guest.bridge for guest in guests}:
            self._admit_bridge(bridge)
        # Only now, as the table keeps VMs from the host's loopback addresses.
        for bridge in {guest.bridge for guest in guests if guest.ports}:
            route_to_loopback(bridge)
        forwards = [port for guest in guests for port in guest.ports]
        if udp := {int(port["hostPort"]) for port in forwards if port["protocol"] == "udp"}:
            self._forget_udp(udp)

    def dismiss(self, vm_cid: str, attachments: Sequence[Attachment]) -> None:
        """Remove the rules of a VM; idempotent. Raises CommandFailed.

        Addresses and ports that are not reserved for this VM are those of another one by now: they
        are released after this. The VM may still run, so it is detached from its bridges first.
        """
        elements = [
            element
            for guest in guests_of(vm_cid, attachments)
            for element in self._reserved(guest).elements()
        ]
        names = []
        for attachment in filter(is_policed, attachments):
            if name := port_of(attachment):
                detach(attachment.bridge, name)
                names.append(name)
        if elements or names:
            self._apply(
                nftables.removing(self.table, elements, host_access=self._host_access)
                + senders.removing(self.table, names)
            )

    def missing(self) -> set[str]:
        """Return the VMs that lack rules, as when somebody flushed the ruleset.

        Raises CommandFailed.
        """
        owners = self.owners()
        wanted: dict[str, set[Element]] = {}
        for vm_cid, attachments in self._attachments():
            elements = wanted.setdefault(vm_cid, set())
            for guest in guests_of(vm_cid, attachments):
                elements |= set(self._reserved(guest).elements())
            elements |= {port.element for port in ports_of(vm_cid, attachments)}
        return {
            vm_cid
            for vm_cid, elements in wanted.items()
            if not {element._replace(value="") for element in elements} <= owners.get(vm_cid, set())
        }

    def admit_bridges(self) -> None:
        """Tell the host's firewalls of all bridges that VMs are on; idempotent."""
        for bridge in sorted({guest.bridge for guest in self.guests()}):
            host_firewalls.admit(bridge, self.table, self._log)

    def guests(self) -> Iterator[Guest]:
        """Yield the interfaces on bridges of ours of all VMs, except incomplete ones."""
        for vm_cid, attachments in self._attachments():
            yield from guests_of(vm_cid, attachments)

    def _attachments(self) -> Iterator[tuple[str, list[Attachment]]]:
        for folder in sorted(self._layout.vms.glob("*-vm-*")):
            if not vm_creation.is_marked(folder):
                yield folder.name, attachments_in(folder / STATE)

    def owners(self) -> dict[str, set[Element]]:
        """Return the elements that the tables have, without their values, by VM CID.

        Raises CommandFailed.
        """
        if not self._layout.bridges.is_dir():  # no VM since the host started, so no table
            return {}
        by_owner: dict[str, set[Element]] = {}
        for family in ("inet", "bridge"):
            for owner, elements in nftables.owners(self._listed(family)).items():
                by_owner.setdefault(owner, set()).update(elements)
        return by_owner

    def _listed(self, family: str) -> dict[str, Any]:
        """Return what nft lists of one of the tables, nothing if it is missing."""
        words = ["nft", "--json", "list", "table", family, self.table]
        try:
            listed: dict[str, Any] = json.loads(run(words, timeout=_SECONDS, install_hint=INSTALL))
        except CommandFailed as error:
            if error.status == 1 and "No such file" in error.stderr:
                return {}
            raise
        return listed

    def renew(self) -> None:
        """Replace the rules that all VMs share, after a change of the configuration.

        Raises CommandFailed.
        """
        if self._layout.bridges.is_dir():
            self._apply(nftables.adding(self.table, [], host_access=self._host_access))

    def remove_elements(self, elements: Sequence[Element]) -> None:
        """Remove orphaned elements, as `owners` returns them. Raises CommandFailed."""
        names = [element.key for element in elements if element.set == senders.PORTS]
        others = [element for element in elements if element.set != senders.PORTS]
        self._apply(nftables.deleting(self.table, others) + senders.removing(self.table, names))

    def remove_all(self) -> None:
        """Remove the tables and what other firewalls were told. Raises CommandFailed."""
        for path in sorted(self._layout.bridges.glob("*")):
            host_firewalls.forget(path.name, self.table)
            path.unlink(missing_ok=True)
        self._apply(f"add table inet {self.table}\ndelete table inet {self.table}\n")
        if self._listed("bridge"):
            self._apply(f"delete table bridge {self.table}\n")

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
        return replace(
            guest,
            addresses=[ip for ip in guest.addresses if address_owner(folder / ip) == guest.vm_cid],
            ports=[
                port
                for port in guest.ports
                if ports.owner(f"{port['protocol']}-{port['hostPort']}") == guest.vm_cid
            ],
        )

    def _admit_bridge(self, bridge: str) -> None:
        """Prepare a bridge and tell the host's firewalls of it, once after it was made."""
        mark = b""
        with suppress(OSError):  # of a VM whose bridge is not there (any more)
            mark = b"%d\n" % socket.if_nametoindex(bridge)
        descriptor = os.open(self._layout.bridges / bridge, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.pread(descriptor, 32, 0) != mark or not mark:
                host_firewalls.admit(bridge, self.table, self._log)
                if mark:
                    run(senders.filtering_all(bridge), install_hint=iproute.INSTALL)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, mark, 0)
        finally:
            os.close(descriptor)


def guests_of(vm_cid: str, attachments: Sequence[Attachment]) -> list[Guest]:
    """Return a VM's interfaces on bridges of ours."""
    return [
        Guest(
            vm_cid,
            attachment.bridge,
            [ip for ip, _, _ in addresses(attachment.result or {})],
            attachment.masquerade,
            attachment.runtime.get("portMappings", ()),
        )
        for attachment in attachments
        if attachment.bridge
    ]


def ports_of(vm_cid: str, attachments: Sequence[Attachment]) -> list[Port]:
    """Return a VM's ports on bridges of ours that only let it send as itself."""
    results = [attachment.result or {} for attachment in attachments]
    mine = [ip for result in results for ip, _, _ in addresses(result)]
    mine += [senders.link_local(mac) for result in results if (mac := mac_of(result))]
    ports = []
    for attachment in filter(is_policed, attachments):
        name, mac = port_of(attachment), mac_of(attachment.result or {})
        if name and mac:
            ports.append(Port(name, vm_cid, mac, mine))
    return ports


def is_policed(attachment: Attachment) -> bool:
    """Tell whether a VM may send only as itself on an attachment."""
    return bool(attachment.bridge) and not attachment.spoofing


def detach(bridge: str, port: str) -> None:
    """Detach a port from a bridge; ignore what is gone."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16si20x", bridge.encode(), socket.if_nametoindex(port))
        fcntl.ioctl(any_socket, kernel.SIOCBRDELIF, request)


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
