"""Find a VM by its CID, the beginning of it, or BOSH's name."""

from collections.abc import Iterator, Sequence

from cpi.commands.declare import argument
from cpi.errors import CPIError, VMNotFound
from cpi.text import shown
from cpi.views import VMView

_HELP = "CID or its beginning, or BOSH's name: [DEPLOYMENT/]GROUP[/ID or INDEX]"
VM = argument("vm", metavar="VM", help=_HELP)
_SHOWN = 5


def find(text: str, vms: Sequence[VMView]) -> VMView:
    """Return the VM that matches. Raises VMNotFound, or CPIError naming all that match."""
    for match in (_exact, _by_name, _by_beginning):
        matches = [vm for vm in vms if match(text, vm)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            listed = ", ".join(_shown(vm) for vm in matches[:_SHOWN])
            more = ", …" * (len(matches) > _SHOWN)
            raise CPIError(f"{shown(text)} may be any of {len(matches)} VMs: {listed}{more}")
    raise VMNotFound(f"there is no VM {shown(text)}; `bosh-cpi vms` lists those there are")


def _exact(text: str, vm: VMView) -> bool:
    return text == vm.cid


def _by_name(text: str, vm: VMView) -> bool:
    return text in _names(vm)


def _by_beginning(text: str, vm: VMView) -> bool:
    """Match the beginning of the CID, of its last part, or of the id in a full name."""
    if not text:
        return False
    unique, identifier = vm.cid.rpartition("-")[2], vm.name.id
    if vm.cid.startswith(text) or unique.startswith(text):
        return True
    group, _, begun = text.rpartition("/")
    return bool(begun) and identifier.startswith(begun) and f"{group}/{identifier}" in _names(vm)


def _names(vm: VMView) -> Iterator[str]:
    """Yield group, group/id, group/index, and each of them below the deployment."""
    name = vm.name
    if not name.group:
        return
    for group in dict.fromkeys((name.group, name.job)):
        if not group:
            continue
        for ending in ("", *(f"/{instance}" for instance in (name.id, name.index) if instance)):
            yield f"{group}{ending}"
            if name.deployment:
                yield f"{name.deployment}/{group}{ending}"


def _shown(vm: VMView) -> str:
    if not vm.name.group:
        return vm.cid
    return f"{vm.cid} ({vm.name.deployment}/{vm.name.instance})"
