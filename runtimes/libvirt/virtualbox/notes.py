"""Facts of VMs whose hypervisor keeps no metadata: a file in each VM's folder.

It has the domain's document too, from which it is defined again when that changes.
"""

from dataclasses import asdict
from pathlib import Path

from cpi.errors import CloudError
from cpi.host.facts_file import read_facts, write_facts
from cpi.host.layout import Layout
from runtimes.libvirt.xml.domain_xml import Facts

_FILE = "vm.json"


class Notes:
    """The notes of all VMs. The caller holds the lock of the VM it writes about."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def facts(self, vm_cid: str) -> Facts:
        """Return a VM's facts, empty for one that does not exist. Raises CloudError."""
        return self._read(vm_cid)[0]

    def document(self, vm_cid: str) -> str:
        """Return the document of the domain; "" when there is none. Raises CloudError."""
        return self._read(vm_cid)[1]

    def write(self, vm_cid: str, facts: Facts, document: str) -> None:
        """Replace a VM's notes atomically. Raises NoDiskSpace."""
        write_facts(self._path(vm_cid), {"facts": asdict(facts), "domain": document})

    def forget(self, vm_cid: str) -> None:
        """Delete a VM's notes."""
        self._path(vm_cid).unlink(missing_ok=True)

    def _read(self, vm_cid: str) -> tuple[Facts, str]:
        notes = read_facts(self._path(vm_cid))
        if notes is None:
            return Facts(), ""
        try:
            return Facts(**notes["facts"]), str(notes["domain"])
        except (KeyError, TypeError) as error:
            raise CloudError(f"the facts in {self._path(vm_cid)} are damaged: {error}") from None

    def _path(self, vm_cid: str) -> Path:
        return self._layout.vm(vm_cid) / _FILE
