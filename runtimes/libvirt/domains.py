"""Domains: defining, starting, stopping and deleting a VM, and its facts.

Where the hypervisor keeps no metadata, the facts are in notes: files of this machine, from which a
domain is also defined again.
"""

from dataclasses import dataclass
from typing import Any

from cpi.config.config import Config
from cpi.errors import CloudError, VMNotFound
from cpi.host.layout import Layout
from cpi.host.undo import Undo
from cpi.log import Log
from runtimes.libvirt import client
from runtimes.libvirt.client import Connection, translated_errors
from runtimes.libvirt.profiles import Profile
from runtimes.libvirt.virtualbox import vboxmanage, virtualbox_xml
from runtimes.libvirt.virtualbox.notes import Notes
from runtimes.libvirt.xml import domain_xml
from runtimes.libvirt.xml.domain_xml import Facts


@dataclass(frozen=True)
class Domains:
    """The domains of one libvirt. The caller holds the lock of the VM it changes."""

    connection: Connection
    profile: Profile
    config: Config
    layout: Layout
    log: Log

    # Looking

    def find(self, vm_cid: str) -> Any:
        """Return the VM's domain, or None."""
        return self.connection.domain(vm_cid)

    def exists(self, vm_cid: str) -> bool:
        """Tell whether a VM exists, also while it is being defined again."""
        return self.find(vm_cid) is not None or self._is_noted(vm_cid)

    def _is_noted(self, vm_cid: str) -> bool:
        return not self.profile.metadata and self.notes.facts(vm_cid).complete

    def require(self, vm_cid: str) -> None:
        """Raise VMNotFound when there is no such VM."""
        if not self.exists(vm_cid):
            raise VMNotFound(f"libvirt ({self.connection.uri}) has no VM {vm_cid}")

    def get(self, vm_cid: str) -> Any:
        """Return the domain of a VM whose lock is held. Raises VMNotFound."""
        domain = self.find(vm_cid)
        if domain is None:
            self.require(vm_cid)
            self.log.warn(f"a killed call has left {vm_cid} undefined; defining and starting it")
            domain = self.define(vm_cid, self.notes.document(vm_cid))
            self.start(domain)
        return domain

    def running_with(self, vm_cid: str) -> Any:
        """Return the domain of a VM that runs, or None; also for the CID ""."""
        domain = self.find(vm_cid) if vm_cid else None
        return domain if domain is not None and is_running(domain) else None

    # Starting and stopping

    def define(self, vm_cid: str, document: str) -> Any:
        """Define a VM, and return its domain. Raises AlreadyThere, CloudError."""
        with translated_errors(f"defining the VM {vm_cid}"):
            domain = self.connection.raw.defineXML(document)
            if not self.profile.metadata:
                lost = virtualbox_xml.lost(document, domain.XMLDesc(0))
                if lost:
                    raise CloudError(f"libvirt's driver did not define the VM {vm_cid} with {lost}")
        return domain

    def start(self, domain: Any) -> None:
        """Start a domain that does not run. Raises CloudError."""
        vm_cid = domain.name()
        with translated_errors(f"starting the VM {vm_cid}"):
            if self.profile.starts:
                domain.create()
            else:
                vboxmanage.start(vm_cid, domain.UUIDString())

    def start_stopped(self, vm_cid: str) -> None:
        """Start a VM if it does not run. Raises VMNotFound, CloudError."""
        domain = self.get(vm_cid)
        try:
            if not is_running(domain):
                self.start(domain)
        except CloudError:
            if not is_running(domain):  # else libvirt has started it meanwhile
                raise

    def stop(self, vm_cid: str, seconds: float | None = None) -> None:
        """Shut down a VM that runs, or turn it off after `seconds`: by default, as configured."""
        domain = self.running_with(vm_cid)
        if domain is None:
            return
        if seconds is None:
            seconds = self.config.integer(f"{self.profile.name}.shutdown_timeout")
        if not seconds or not self._shuts_down(vm_cid, domain, seconds):
            with translated_errors(f"turning off the VM {vm_cid}"):
                client.destroy(domain)

    def _shuts_down(self, vm_cid: str, domain: Any, seconds: float) -> bool:
        """Press the power button, and tell whether the VM has shut down in time."""
        try:
            with (
                self.connection.watching(domain, client.LIFECYCLE),
                translated_errors("shutting down"),
            ):
                domain.shutdown()
                ended = self.connection.wait(lambda: not domain.isActive(), seconds)
        except CloudError as error:
            self.log.warn(f"{vm_cid}: {error.message}")
            return False
        if not ended:
            self.log.info(f"{vm_cid} did not shut down within {seconds:g} s; turning it off")
        return ended

    def delete(self, vm_cid: str) -> None:
        """Turn a VM off and undefine it, if it exists."""
        domain = self.find(vm_cid)
        if not self.profile.metadata:
            self.notes.forget(vm_cid)  # first, since what is noted is defined again
        if domain is None:
            return
        with translated_errors(f"deleting the VM {vm_cid}"):
            if domain.isActive():
                client.destroy(domain)
            (client.undefine if self.profile.metadata else client.undefine_plain)(domain)

    # Defining again

    def redefine(self, vm_cid: str, document: str) -> None:
        """Stop a VM, define it by another document, and start it if it ran.

        A failure rolls that back. Raises VMNotFound, CloudError.
        """
        running = is_running(self.get(vm_cid))
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
        """Define a stopped VM again. After a kill, `get` continues from the notes."""
        facts = self.notes.facts(vm_cid)
        self.notes.write(vm_cid, facts, document)
        domain = self.find(vm_cid)
        if domain is not None:
            with translated_errors(f"defining the VM {vm_cid} again"):
                client.undefine_plain(domain)
        domain = self.define(vm_cid, document)
        if start:
            self.start(domain)

    # Facts

    @property
    def notes(self) -> Notes:
        """The notes of VMs whose hypervisor keeps no metadata."""
        return Notes(self.layout)

    def facts(self, domain: Any) -> Facts:
        """Return a domain's facts."""
        if not self.profile.metadata:
            return self.notes.facts(domain.name())
        text = client.metadata(domain, domain_xml.NAMESPACE)
        try:
            return domain_xml.read_facts(text) if text else Facts()
        except ValueError as error:
            raise CloudError(f"the VM {domain.name()} has damaged metadata: {error}") from None

    def set_facts(self, domain: Any, facts: Facts) -> None:
        """Replace a domain's facts."""
        if not self.profile.metadata:
            self.notes.write(domain.name(), facts, self.notes.document(domain.name()))
            return
        with translated_errors(f"recording what {domain.name()} is"):
            client.set_metadata(
                domain, domain_xml.facts(facts), domain_xml.PREFIX, domain_xml.NAMESPACE
            )

    def is_unfinished(self, vm_cid: str) -> bool:
        """Tell whether a VM's creation has not finished, or there is no VM."""
        if not self.profile.metadata:
            return not self.notes.facts(vm_cid).complete
        domain = self.find(vm_cid)
        return domain is None or not self.facts(domain).complete


def is_running(domain: Any) -> bool:
    """Tell whether a domain runs. Raises CloudError."""
    with translated_errors(f"looking at the VM {domain.name()}"):
        return bool(domain.isActive())
