"""What calls that were killed left behind, recognised by having no owner."""

from collections.abc import Callable

from runtimes.libvirt.disk_files import BACKUP
from runtimes.libvirt.vms import PARTS, VMs


def orphans(vms: VMs, is_held: Callable[[str], bool]) -> list[str]:
    """VMs of which there are volumes, but no creation that is finished or under way.

    is_held: tells whether a call is at work on a CID. A finished copy of a disk goes at once.
    """
    found = []
    mine = f"{vms.profile.name}-vm-"
    for name in sorted(vms.pool.names()):
        stem, dot, part = name.partition(".")
        if dot + part == BACKUP and not is_held(stem):
            vms.pool.delete(name)
        elif dot + part not in PARTS or not stem.startswith(mine) or stem in found:
            continue
        elif not is_held(stem) and vms.is_unfinished(stem):
            found.append(stem)
    return found
