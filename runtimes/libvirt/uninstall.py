"""What a runtime leaves on a libvirt without VMs of ours: stemcells, its networks and its pool."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cpi.model import Garbage
from cpi.views import StemcellView
from runtimes.libvirt.client import Connection, translated_errors
from runtimes.libvirt.nics import is_ours
from runtimes.libvirt.stemcells import Stemcells
from runtimes.libvirt.volumes import StoragePool
from runtimes.libvirt.xml.elements import parsed

_WHY = "this CPI made it"


def remains(
    connection: Connection,
    pool: StoragePool,
    stemcells: Stemcells,
    listed: Callable[[], Sequence[StemcellView]],
) -> list[Garbage]:
    """Return what is there, in the order of removal. Raises CloudError.

    listed: returns the stemcells in the pool, which it makes if there is none.
    """
    found = []
    raw = connection.pool(pool.name)
    if raw is not None and parsed(raw.XMLDesc()).findtext("target/path") == pool.path:
        for view in listed():
            remove = partial(stemcells.delete, view.cid)
            found.append(Garbage("stemcell", view.cid, _WHY, view.cid, remove))
        found.append(_owned("pool", raw))
    with translated_errors("listing networks"):
        networks = connection.raw.listAllNetworks()
    return [
        *found,
        *(_owned("network", network) for network in networks if is_ours(network.name())),
    ]


def _owned(noun: str, thing: Any) -> Garbage:
    name = thing.name()
    remove = partial(_undefine, thing, f"deleting the {noun} {name}")
    return Garbage(f"libvirt {noun}", name, _WHY, f"{noun}-{name}", remove)


def _undefine(thing: Any, doing: str) -> None:
    """Stop a network or a pool, and undefine it; a pool's files stay."""
    with translated_errors(doing):
        if thing.isActive():
            thing.destroy()
        thing.undefine()
