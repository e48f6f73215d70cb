"""The life of a VM: its folder, networks, volumes and domain.

`<vm cid>.root` is copied on write from the stemcell, `.data` is the ephemeral disk, `.iso` has the
agent's settings, `.console` the console output.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cpi.agent_settings import render as render_settings
from cpi.disks.raw_image import MIB
from cpi.errors import CloudError, NotSupported
from cpi.host import vm_creation
from cpi.log import Log
from cpi.model import Json, Network, VMSpec
from runtimes.libvirt import settings_iso
from runtimes.libvirt.accelerators import domain_type
from runtimes.libvirt.client import translated_errors
from runtimes.libvirt.disk_backend import DiskBackend
from runtimes.libvirt.disks import Disks, hint_of
from runtimes.libvirt.domains import Domains
from runtimes.libvirt.nics import Nics
from runtimes.libvirt.profiles import Profile
from runtimes.libvirt.stemcells import Base, Stemcells
from runtimes.libvirt.virtualbox import media, virtualbox_xml
from runtimes.libvirt.volumes import StoragePool, capacity_of, path_of
from runtimes.libvirt.xml import domain_xml
from runtimes.libvirt.xml.domain_xml import Domain, DomainDisk, Facts, Interface
from runtimes.libvirt.xml.storage_xml import Volume

ROOT, DATA, ISO, CONSOLE = ".root", ".data", ".iso", ".console"
PARTS = (ROOT, DATA, ISO, CONSOLE)

_DATA_SERIAL = "ephemeral"
_ISO_SIZE = 1 << 20  # bytes; with room for later hints
_VIRTIO_SERIAL = 20

DOCUMENTS = {"qemu": domain_xml.domain, "virtualbox": virtualbox_xml.domain}


@dataclass(frozen=True)
class VMs:
    """VMs of one libvirt. The caller holds the lock of the VM it changes.

    lock: holds the lock of a disk.
    """

    domains: Domains
    pool: StoragePool
    stemcells: Stemcells
    nics: Nics
    disks: Disks
    backend: DiskBackend
    profile: Profile
    lock: Callable[[str], Any]
    log: Log

    # From its creation to its end

    def create(self, spec: VMSpec) -> Sequence[Network]:
        """Create and start a VM; return its networks with their real addresses."""
        self.nics.require_free(spec)
        folder = self.domains.layout.vm(spec.cid)
        is_local = self.domains.connection.is_local
        with vm_creation.creation(
            folder,
            self.log,
            make=lambda: vm_creation.make(folder) if is_local else None,
            remove=lambda: _remove(folder),
            connect=lambda: self.nics.connect(spec, folder),
            disconnect=lambda: self.nics.disconnect(spec.cid, folder),
        ) as (undo, connecting):
            # CNI's plugins take as long as the volumes.
            base = self.stemcells.find(spec.stemcell_cid)
            undo.push(lambda: self._delete_volumes(spec.cid))
            disks = [self._root(spec, base), self._data(spec, base)]
            connected = connecting.result()
            networks = [network for network, _ in connected]
            disks.append(self._settings(spec, base, networks, disks))
            interfaces = [interface for _, interface in connected]
            wanted = self._domain(spec, base, disks, interfaces)
            document = DOCUMENTS[self.profile.document](wanted)
            undo.push(lambda: self._undo_definition(spec))
            if not self.profile.metadata:
                self.domains.notes.write(spec.cid, wanted.facts, document)
            domain = self.domains.define(spec.cid, document)
            self.domains.start(domain)
            # On bridges of the host it must not run before `restore` has made its ports' rules.
            if self.profile.autostart and not any(interface.bridge for interface in interfaces):
                with translated_errors(f"starting the VM {spec.cid}"):
                    domain.setAutostart(1)
            self.domains.set_facts(domain, replace(wanted.facts, complete=True))
        self.log.info(f"{spec.cid} runs")
        return networks

    def _undo_definition(self, spec: VMSpec) -> None:
        """Undo a definition; another's domain of that name stays."""
        domain = self.domains.find(spec.cid)
        ours = domain is None or self.domains.facts(domain).stemcell == spec.stemcell_cid
        if ours or not self.profile.metadata:
            self.domains.delete(spec.cid)

    def delete(self, vm_cid: str) -> None:
        """Delete all parts of a VM, also after a killed create."""
        self.pool.require()
        if self.backend.attached_to(vm_cid):  # the guest has to flush its data
            self.domains.stop(vm_cid)
        self.clear(vm_cid)

    def clear(self, vm_cid: str) -> None:
        """Delete a VM without shutting it down; its disks are released as it ends."""
        folder = self.domains.layout.vm(vm_cid)
        vm_creation.begin(folder)
        disk_cids = self.backend.attached_to(vm_cid)
        self.domains.delete(vm_cid)
        self._delete_volumes(vm_cid)
        for disk_cid in disk_cids:
            with self.lock(disk_cid):
                self.disks.forget(vm_cid, disk_cid)
        self.nics.disconnect(vm_cid, folder)
        _remove(folder)

    def reboot(self, vm_cid: str) -> None:
        """Shut a VM down and start it again. Raises VMNotFound."""
        domain = self.domains.get(vm_cid)
        self.domains.stop(vm_cid)
        self.nics.restore(vm_cid, self.domains.layout.vm(vm_cid), lambda: None)
        self.domains.start(domain)
        self._shut_down_mark(vm_cid).unlink(missing_ok=True)

    def shut_down(self, vm_cid: str, seconds: float) -> None:
        """Shut a VM down until `restore` or `reboot`. Raises VMNotFound, NotSupported."""
        self.domains.require(vm_cid)
        if not self.domains.connection.is_local:
            raise NotSupported(
                f"the VM {vm_cid} is on another machine, and does not stop with this one"
            )
        if self.domains.running_with(vm_cid) is not None:
            self._shut_down_mark(vm_cid).touch(0o600)
            self.domains.stop(vm_cid, seconds)

    def restore(self, vm_cid: str) -> bool:
        """Start a VM that `shut_down` ended, and restore its networks after a restart of the host.

        Tell whether there was anything to do.
        """
        # libvirt itself starts domains that are not on bridges of the host, where its driver can.
        folder = self.domains.layout.vm(vm_cid)
        if vm_creation.is_marked(folder) or self.domains.is_unfinished(vm_cid):
            return False
        restored = self.nics.restore(vm_cid, folder, lambda: self.domains.start_stopped(vm_cid))
        mark = self._shut_down_mark(vm_cid)
        if mark.exists():
            self.domains.start_stopped(vm_cid)
            mark.unlink()
            return True
        return restored

    def _shut_down_mark(self, vm_cid: str) -> Path:
        """Return the file that tells a VM that was shut down from one that ended by itself."""
        return self.domains.layout.vm(vm_cid) / "shut-down"

    # What it is made of

    def _root(self, spec: VMSpec, base: Base) -> DomainDisk:
        size = max(base.size, (spec.properties.root_disk or 0) * MIB)
        backing = (base.path, base.format)
        clone_format, bus = self.profile.clone_format, self.profile.bus[base.resolution]
        volume = self.pool.create(Volume(spec.cid + ROOT, size, clone_format, backing=backing))
        target = domain_xml.free_target(bus, [])
        return DomainDisk(path_of(volume), clone_format, target, bus, backing=backing)

    def _data(self, spec: VMSpec, base: Base) -> DomainDisk:
        size = spec.properties.ephemeral_disk or self._default("ephemeral_disk")
        clone_format, bus = self.profile.clone_format, self.profile.bus[base.resolution]
        volume = self.pool.create(Volume(spec.cid + DATA, size * MIB, clone_format))
        target = domain_xml.free_target(bus, [domain_xml.free_target(bus, [])])
        return DomainDisk(path_of(volume), clone_format, target, bus, _data_serial(spec.cid))

    def _settings(
        self, spec: VMSpec, base: Base, networks: Sequence[Network], others: Sequence[DomainDisk]
    ) -> DomainDisk:
        if self.profile.serials:
            ephemeral = hint_of(_data_serial(spec.cid), base.resolution)
        else:
            ephemeral = media.hint_of(spec.cid + DATA, base.resolution)
        configured = [
            replace(network, alias=f"eth{number}") if network.type == "dynamic" else network
            for number, network in enumerate(networks)
        ]
        settings = render_settings(spec, configured, ephemeral=ephemeral)
        image = settings_iso.render(base.settings, spec.cid, settings)
        size = max(_ISO_SIZE, 2 * len(image))
        volume = self.pool.create(Volume(spec.cid + ISO, size))
        self.pool.write(volume, image)
        device, bus = self.profile.settings_device[base.settings]
        target = domain_xml.free_target(bus, [disk.target for disk in others])
        return DomainDisk(path_of(volume), "raw", target, bus, device=device, read_only=True)

    def _domain(
        self, spec: VMSpec, base: Base, disks: Sequence[DomainDisk], interfaces: Sequence[Interface]
    ) -> Domain:
        wanted, domains = spec.properties, self.domains
        type_ = domain_type(domains.connection, self.profile, domains.config, self.log)
        default_model = "host" if type_ == "kvm" else ""
        return Domain(
            name=spec.cid,
            type=type_,
            machine=wanted.machine or self._text("machine") or self.profile.machine,
            firmware=wanted.firmware or self._text("firmware"),
            cpu_model=wanted.cpu_model or self._text("cpu_model") or default_model,
            cpu=wanted.cpu or self._default("cpu"),
            memory=wanted.memory or self._default("memory"),
            disks=tuple(disks),
            interfaces=tuple(interfaces),
            console=f"{disks[0].path.removesuffix(ROOT)}{CONSOLE}",
            facts=Facts(
                stemcell=spec.stemcell_cid,
                settings=base.settings,
                resolution=base.resolution,
                filesystem=spec.disk_wishes.filesystem or "",
            ),
        )

    def _text(self, name: str) -> str:
        return self.profile.setting(self.domains.config, name)

    def _default(self, name: str) -> int:
        return self.domains.config.integer(f"{self.profile.name}.{name}")

    def _delete_volumes(self, vm_cid: str) -> None:
        """Delete a VM's own volumes, not its persistent disks."""
        self.pool.refresh()  # the hypervisor makes consoles without the pool
        for name in (*(vm_cid + part for part in PARTS), *self._consoles(vm_cid)):
            self.pool.delete(name)

    def _consoles(self, vm_cid: str) -> list[str]:
        """Return the files of a VM's console, the oldest first.

        virtlogd rotates them by size, and keeps a few (virtlogd.conf, max_backups).
        """
        first = vm_cid + CONSOLE
        older = [name for name in self.pool.names() if name.startswith(f"{first}.")]
        older.sort(key=lambda name: (len(name), name), reverse=True)  # .console.2, .console.1
        return [*older, first]

    # While it is there

    def console(self, vm_cid: str) -> bytes:
        """Return what is kept of a VM's console output. Raises VMNotFound."""
        self.domains.require(vm_cid)
        self.pool.refresh()
        printed = b""
        for name in self._consoles(vm_cid):
            volume = self.pool.find(name)
            if volume is not None and capacity_of(volume):
                printed += self.pool.read(volume)
        return printed

    def set_metadata(self, vm_cid: str, metadata: Mapping[str, str]) -> None:
        """Replace BOSH's metadata in the domain. Raises VMNotFound."""
        domain = self.domains.get(vm_cid)
        facts = replace(self.domains.facts(domain), metadata=dict(metadata))
        self.domains.set_facts(domain, facts)

    def add_disk_to_settings(self, vm_cid: str, disk_cid: str, hint: Json) -> None:
        """Put a disk's hint where agents of API version 1 look for it: into the settings."""
        source = self.domains.facts(self.domains.get(vm_cid)).settings
        volume = self.pool.find(vm_cid + ISO)
        if volume is None:
            raise CloudError(f"the VM {vm_cid} has lost its settings, {vm_cid}{ISO}")
        settings = settings_iso.read(source, self.pool.read(volume))
        settings["disks"]["persistent"][disk_cid] = hint
        image = settings_iso.render(source, vm_cid, settings)
        if len(image) > capacity_of(volume):
            raise CloudError(f"the settings of {vm_cid} have outgrown their {_ISO_SIZE >> 20} MiB")
        self.pool.write(volume, image)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=not folder.exists())


def _data_serial(vm_cid: str) -> str:
    """Return the ephemeral disk's serial, as long as virtio allows, which agents require."""
    return (_DATA_SERIAL + vm_cid.rsplit("-", 1)[1])[:_VIRTIO_SERIAL]
