"""How people name a VM: by its CID, the beginning of it, or as BOSH does."""

from collections.abc import Iterator, Sequence

from cpi.commands.declare import argument
from cpi.errors import CPIError, VMNotFound
from cpi.text import shown
from cpi.views import VMView

_HELP = "CID or its beginning, or BOSH's name: [DEPLOYMENT/]GROUP[/ID or INDEX]"
VM = argument("vm", metavar="VM", help=_HELP)
_SHOWN = 5


def find(text: str, vms: Sequence[VMView]) -> VMView:
    """Return the one VM that is meant. Raises VMNotFound, or CPIError naming those it may be."""
    for matches in (_exact, _by_name, _by_beginning):
        found = [vm for vm in vms if matches(text, vm)]
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(_shown(vm) for vm in found[:_SHOWN])
            more = ", …" * (len(found) > _SHOWN)
            raise CPIError(f"{shown(text)} may be any of {len(found)} VMs: {listed}{more}")
    raise VMNotFound(f"there is no VM {shown(text)}; `bosh-cpi vms` lists those there are")


def _exact(text: str, vm: VMView) -> bool:
    return text == vm.cid


def _by_name(text: str, vm: VMView) -> bool:
    return text in _names(vm)


def _by_beginning(text: str, vm: VMView) -> bool:
    """Of the CID, of its last part, or of a name with an id, where that is told in full."""
    if not text:
        return False
    own, identifier = vm.cid.rpartition("-")[2], vm.name.id
    if vm.cid.startswith(text) or own.startswith(text):
        return True
    group, _, begun = text.rpartition("/")
    return bool(begun) and identifier.startswith(begun) and f"{group}/{identifier}" in _names(vm)


def _names(vm: VMView) -> Iterator[str]:
    """group, group/id, group/index, and each of them below the deployment."""
    name = vm.name
    if not name.group:
        return
    for group in dict.fromkeys((name.group, name.job)):
        if not group:
            continue
        for ending in ("", *(f"/{one}" for one in (name.id, name.index) if one)):
            yield f"{group}{ending}"
            if name.deployment:
                yield f"{name.deployment}/{group}{ending}"


def _shown(vm: VMView) -> str:
    if not vm.name.group:
        return vm.cid
    return f"{vm.cid} ({vm.name.deployment}/{vm.name.instance})"
