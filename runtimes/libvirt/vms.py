"""VMs as domains: their volumes, the domain, its start and its end.

`<vm cid>.root` is copied on write from the stemcell, `.data` is the ephemeral disk, `.iso` has the
agent's settings, `.console` what the VM prints.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cpi.agent_settings import render as render_settings
from cpi.config.config import Config
from cpi.disks.raw_image import MIB
from cpi.errors import CloudError, VMNotFound
from cpi.host.undo import Undo
from cpi.log import Log
from cpi.model import Json, Network, VMSpec
from runtimes.libvirt import client, settings_iso
from runtimes.libvirt.accelerators import domain_type
from runtimes.libvirt.client import Connection, told, told_existing
from runtimes.libvirt.disks import hint_of, is_running
from runtimes.libvirt.profiles import Profile
from runtimes.libvirt.stemcells import Base, Stemcells
from runtimes.libvirt.virtualbox import media, vboxmanage, virtualbox_xml
from runtimes.libvirt.virtualbox.notes import Notes
from runtimes.libvirt.volumes import Pool, capacity_of, path_of
from runtimes.libvirt.xml import domain_xml
from runtimes.libvirt.xml.domain_xml import Disk, Domain, Facts, Interface
from runtimes.libvirt.xml.storage_xml import Volume

ROOT, DATA, ISO, CONSOLE = ".root", ".data", ".iso", ".console"
PARTS = (ROOT, DATA, ISO, CONSOLE)

Connected = list[tuple[Network, Interface]]

_DATA_SERIAL = "ephemeral"
_ISO_SIZE = 1 << 20  # bytes; room for hints that come later
_VIRTIO_SERIAL = 20

DOCUMENTS = {"qemu": domain_xml.domain, "virtualbox": virtualbox_xml.domain}


@dataclass(frozen=True)
class VMs:
    """VMs of one libvirt. The caller holds the lock of the VM it changes."""

    connection: Connection
    pool: Pool
    stemcells: Stemcells
    profile: Profile
    config: Config
    log: Log

    def create(
        self, spec: VMSpec, connecting: "Future[Connected]", undo: Undo
    ) -> Sequence[Network]:
        """Create and start a VM; return its networks, which are connected meanwhile."""
        base = self.stemcells.find(spec.stemcell_cid)
        undo.push(lambda: self.delete_volumes(spec.cid))
        disks = [self._root(spec, base), self._data(spec, base)]
        connected = connecting.result()
        networks = [network for network, _ in connected]
        disks.append(self._settings(spec, base, networks, disks))
        document = DOCUMENTS[self.profile.document](self._domain(spec, base, disks, connected))
        undo.push(lambda: self._undo_definition(spec))
        if not self.profile.metadata:
            self.notes.write(spec.cid, self._new_facts(spec, base), document)
        domain = self._define(spec.cid, document)
        self._start(domain, spec.cid)
        if self.profile.autostart:
            with told(f"starting the VM {spec.cid}"):
                domain.setAutostart(1)
        self._set_facts(domain, replace(self._new_facts(spec, base), complete=True))
        self.log.info(f"{spec.cid} runs")
        return networks

    def _define(self, vm_cid: str, document: str) -> Any:
        with told_existing(f"defining the VM {vm_cid}"):
            domain = self.connection.raw.defineXML(document)
            if not self.profile.metadata:
                lost = virtualbox_xml.lost(document, domain.XMLDesc(0))
                if lost:
                    raise CloudError(f"libvirt's driver did not define the VM {vm_cid} with {lost}")
        return domain

    def _start(self, domain: Any, vm_cid: str) -> None:
        with told(f"starting the VM {vm_cid}"):
            if self.profile.starts:
                domain.create()
            else:
                vboxmanage.start(vm_cid, domain.UUIDString())

    def start(self, vm_cid: str) -> None:
        """Start a VM if it does not run. Raises VMNotFound, CloudError."""
        domain = self.get(vm_cid)
        try:
            if not is_running(domain):
                self._start(domain, vm_cid)
        except CloudError:
            if not is_running(domain):  # else libvirt was just about to do it
                raise

    def find(self, vm_cid: str) -> Any:
        """The VM's domain, or None."""
        return self.connection.domain(vm_cid)

    def exists(self, vm_cid: str) -> bool:
        """Tell whether there is a VM, also while it is being defined anew."""
        return self.find(vm_cid) is not None or self._is_noted(vm_cid)

    def _is_noted(self, vm_cid: str) -> bool:
        return not self.profile.metadata and self.notes.facts(vm_cid).complete

    def require(self, vm_cid: str) -> None:
        """Raise VMNotFound when there is no such VM."""
        if not self.exists(vm_cid):
            raise VMNotFound(f"libvirt ({self.connection.uri}) has no VM {vm_cid}")

    def get(self, vm_cid: str) -> Any:
        """The VM's domain, for who has its lock. Raises VMNotFound."""
        domain = self.find(vm_cid)
        if domain is None:
            if not self._is_noted(vm_cid):
                raise VMNotFound(f"libvirt ({self.connection.uri}) has no VM {vm_cid}")
            self.log.warn(f"a killed call has left {vm_cid} undefined; defining and starting it")
            domain = self._define(vm_cid, self.notes.document(vm_cid))
            self._start(domain, vm_cid)
        return domain

    def redefine(self, vm_cid: str, document: str) -> None:
        """Stop a VM, define it by another document, and start it if it ran.

        When that fails the VM is what it was. Raises VMNotFound, CloudError.
        """
        domain = self.get(vm_cid)
        with told(f"looking at the VM {vm_cid}"):
            running = bool(domain.isActive())
        old = self.notes.document(vm_cid)
        with Undo(self.log) as undo:
            undo.push(lambda: self._put_back(vm_cid, old, start=running))
            self.stop(vm_cid)
            self._replace(vm_cid, document, start=running)
            undo.keep()

    def _put_back(self, vm_cid: str, document: str, *, start: bool) -> None:
        domain = self.find(vm_cid)
        if domain is None or not domain.isActive():  # else it did not even stop
            self._replace(vm_cid, document, start=start)

    def _replace(self, vm_cid: str, document: str, *, start: bool) -> None:
        """Define a VM that does not run anew. Killed here, `get` goes on by what is noted."""
        facts = self.notes.facts(vm_cid)
        self.notes.write(vm_cid, facts, document)
        domain = self.find(vm_cid)
        if domain is not None:
            with told(f"defining the VM {vm_cid} anew"):
                client.undefine_plain(domain)
        domain = self._define(vm_cid, document)
        if start:
            self._start(domain, vm_cid)

    def stop(self, vm_cid: str) -> None:
        """Shut a VM down, or turn it off when it does not within its time; gone is no error."""
        domain = self.find(vm_cid)
        if domain is None:
            return
        with told(f"stopping the VM {vm_cid}"):
            if not domain.isActive():
                return
        seconds = self.config.integer(f"{self.profile.name}.shutdown_timeout")
        if seconds and self._shuts_down(vm_cid, domain, seconds):
            return
        turn_off(domain, vm_cid)

    def _shuts_down(self, vm_cid: str, domain: Any, seconds: float) -> bool:
        """Press the power button, and wait until that has worked."""
        try:
            with self.connection.watching(domain, client.LIFECYCLE), told("shutting down"):
                domain.shutdown()
                ended = self.connection.wait(lambda: not domain.isActive(), seconds)
        except CloudError as error:
            self.log.warn(f"{vm_cid}: {error.message}")
            return False
        if not ended:
            self.log.info(f"{vm_cid} did not shut down within {seconds:g} s; turning it off")
        return ended

    def delete(self, vm_cid: str) -> None:
        """Delete what libvirt has of a stopped VM."""
        self._undo_domain(vm_cid)
        self.delete_volumes(vm_cid)

    def _undo_definition(self, spec: VMSpec) -> None:
        """Undo a definition; a domain of that name which somebody else has made stays."""
        domain = self.find(spec.cid)
        ours = domain is None or self.facts(domain).stemcell == spec.stemcell_cid
        if ours or not self.profile.metadata:
            self._undo_domain(spec.cid)

    def _undo_domain(self, vm_cid: str) -> None:
        domain = self.find(vm_cid)
        if not self.profile.metadata:
            self.notes.forget(vm_cid)  # before it is gone: what is noted is defined again
        if domain is None:
            return
        with told(f"deleting the VM {vm_cid}"):
            if domain.isActive():
                turn_off(domain, vm_cid)
            (client.undefine if self.profile.metadata else client.undefine_plain)(domain)

    def delete_volumes(self, vm_cid: str) -> None:
        """Delete a VM's own volumes; persistent disks are none of them."""
        if self.profile.console:
            self.pool.refresh()  # the hypervisor makes consoles behind its back
        for name in (*(vm_cid + part for part in PARTS), *self._consoles(vm_cid)):
            self.pool.delete(name)

    def reboot(self, vm_cid: str) -> None:
        """Shut a VM down and start it again. Raises VMNotFound."""
        domain = self.get(vm_cid)
        self.stop(vm_cid)
        self._start(domain, vm_cid)

    def console(self, vm_cid: str) -> bytes:
        """What is kept of what a VM has printed on its console. Raises VMNotFound."""
        self.require(vm_cid)
        self.pool.refresh()
        told = b""
        for name in self._consoles(vm_cid):
            volume = self.pool.find(name)
            if volume is not None and capacity_of(volume):
                told += self.pool.read(volume)
        return told

    def _consoles(self, vm_cid: str) -> list[str]:
        """The files of a VM's console, the oldest first.

        virtlogd begins a new one when one is long, and keeps a few (virtlogd.conf, max_backups).
        """
        first = vm_cid + CONSOLE
        older = [name for name in self.pool.names() if name.startswith(f"{first}.")]
        older.sort(key=lambda name: (len(name), name), reverse=True)  # .console.2, .console.1
        return [*older, first]

    # Facts

    @property
    def notes(self) -> Notes:
        """Of VMs whose hypervisor keeps no metadata."""
        return Notes(Path(self.config.text("state_dir")) / "vms")

    def facts(self, domain: Any) -> Facts:
        """What the CPI knows of a domain."""
        if not self.profile.metadata:
            return self.notes.facts(domain.name())
        text = client.metadata(domain, domain_xml.NAMESPACE)
        try:
            return domain_xml.read_facts(text) if text else Facts()
        except ValueError as error:
            raise CloudError(f"the VM {domain.name()} has damaged metadata: {error}") from None

    def set_metadata(self, vm_cid: str, metadata: Mapping[str, str]) -> None:
        """Show BOSH's metadata in the domain, instead of what was there. Raises VMNotFound."""
        domain = self.get(vm_cid)
        self._set_facts(domain, replace(self.facts(domain), metadata=dict(metadata)))

    def _set_facts(self, domain: Any, facts: Facts) -> None:
        if not self.profile.metadata:
            self.notes.write(domain.name(), facts, self.notes.document(domain.name()))
            return
        with told(f"recording what {domain.name()} is"):
            client.set_metadata(
                domain, domain_xml.facts(facts), domain_xml.PREFIX, domain_xml.NAMESPACE
            )

    def is_unfinished(self, vm_cid: str) -> bool:
        """Tell whether a VM's creation came to its end."""
        if not self.profile.metadata:
            return not self.notes.facts(vm_cid).complete
        domain = self.find(vm_cid)
        return domain is None or not self.facts(domain).complete

    def add_disk_to_settings(self, vm_cid: str, disk_cid: str, hint: Json) -> None:
        """Put a disk's hint where agents of API version 1 look for it: into the settings."""
        domain = self.get(vm_cid)
        kind = self.facts(domain).settings
        volume = self.pool.find(vm_cid + ISO)
        if volume is None:
            raise CloudError(f"the VM {vm_cid} has lost its settings, {vm_cid}{ISO}")
        settings = settings_iso.read(kind, self.pool.read(volume))
        settings["disks"]["persistent"][disk_cid] = hint
        image = settings_iso.render(kind, vm_cid, settings)
        if len(image) > capacity_of(volume):
            raise CloudError(f"the settings of {vm_cid} have outgrown their {_ISO_SIZE >> 20} MiB")
        self.pool.write(volume, image)

    # What a VM consists of

    def _root(self, spec: VMSpec, base: Base) -> Disk:
        size = max(base.size, (spec.properties.root_disk or 0) * MIB)
        volume = self.pool.create(
            Volume(
                spec.cid + ROOT, size, self.profile.clone_format, backing=(base.path, base.format)
            )
        )
        bus = self.profile.bus[base.resolution]
        target = domain_xml.free_target(bus, [])
        return Disk(path_of(volume), self.profile.clone_format, target, bus)

    def _data(self, spec: VMSpec, base: Base) -> Disk:
        size = spec.properties.ephemeral_disk or self._usual("ephemeral_disk")
        kind = self.profile.clone_format
        volume = self.pool.create(Volume(spec.cid + DATA, size * MIB, kind))
        bus = self.profile.bus[base.resolution]
        target = domain_xml.free_target(bus, [domain_xml.free_target(bus, [])])
        return Disk(path_of(volume), kind, target, bus, _data_serial(spec.cid))

    def _settings(
        self, spec: VMSpec, base: Base, networks: Sequence[Network], others: Sequence[Disk]
    ) -> Disk:
        if self.profile.serials:
            ephemeral = hint_of(_data_serial(spec.cid), base.resolution)
        else:
            ephemeral = media.hint_of(spec.cid + DATA, base.resolution)
        configured = [_static(network) for network in networks]
        settings = render_settings(spec, configured, ephemeral=ephemeral)
        image = settings_iso.render(base.settings, spec.cid, settings)
        size = max(_ISO_SIZE, 2 * len(image))
        volume = self.pool.create(Volume(spec.cid + ISO, size))
        self.pool.write(volume, image)
        device, bus = self.profile.settings_device[base.settings]
        target = domain_xml.free_target(bus, [disk.target for disk in others])
        return Disk(path_of(volume), "raw", target, bus, device=device, read_only=True)

    def _domain(
        self, spec: VMSpec, base: Base, disks: Sequence[Disk], connected: Connected
    ) -> Domain:
        wanted = spec.properties
        kind = domain_type(self.connection, self.profile, self._text("accelerator"), self.log)
        usual_model = "host" if kind == "kvm" else ""
        console = f"{disks[0].path.removesuffix(ROOT)}{CONSOLE}" if self.profile.console else ""
        return Domain(
            name=spec.cid,
            type=kind,
            os_type=self.profile.os_type,
            machine=wanted.machine or self._text("machine") or self.profile.machine,
            firmware=wanted.firmware or self._text("firmware"),
            cpu_model=wanted.cpu_model or self._text("cpu_model") or usual_model,
            cpu=wanted.cpu or self._usual("cpu"),
            memory=wanted.memory or self._usual("memory"),
            disks=tuple(disks),
            interfaces=tuple(interface for _, interface in connected),
            console=console,
            facts=self._new_facts(spec, base),
        )

    def _new_facts(self, spec: VMSpec, base: Base) -> Facts:
        return Facts(
            stemcell=spec.stemcell_cid,
            settings=base.settings,
            resolution=base.resolution,
            filesystem=spec.disk_wishes.filesystem or "",
        )

    def _text(self, name: str) -> str:
        if name in self.profile.without:
            return ""
        return self.config.text(f"{self.profile.name}.{name}")

    def _usual(self, name: str) -> int:
        return self.config.integer(f"{self.profile.name}.{name}")


def turn_off(domain: Any, vm_cid: str) -> None:
    """End a domain at once; one that has ended meanwhile is no error."""
    with told(f"turning off the VM {vm_cid}"):
        client.destroy(domain)


def _data_serial(vm_cid: str) -> str:
    """Of the ephemeral disk; as long as a virtio serial may be, which agents insist on."""
    return (_DATA_SERIAL + vm_cid.rsplit("-", 1)[1])[:_VIRTIO_SERIAL]


def _static(network: Network) -> Network:
    """A network as its VM's agent has to configure it: no DHCP server is asked."""
    return replace(network, type="manual")
