"""What every runtime does around the making of a VM, so that a failure leaves nothing of it."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from cpi.host import unfinished
from cpi.host.undo import Undo
from cpi.log import Log
from cpi.model import VMSpec

Connected = TypeVar("Connected")
Connected_co = TypeVar("Connected_co", covariant=True)


class Connector(Protocol[Connected_co]):
    """What makes the networks of VMs."""

    def connect(self, spec: VMSpec, folder: Path) -> Connected_co: ...

    def disconnect(self, vm_cid: str, folder: Path) -> None: ...


@contextmanager
def vm_creation(
    spec: VMSpec,
    folder: Path,
    networks: Connector[Connected],
    log: Log,
    *,
    make: Callable[[], object],
    remove: Callable[[], object],
) -> Iterator[tuple[Undo, "Future[Connected]"]]:
    """Make a VM's folder, then its networks in a thread while the body makes the rest.

    Yields the undo for the steps of the body, and the networks. When the body fails everything is
    undone; the folder is marked as unfinished until then. make, remove: the folder, with all that
    is in it.
    """
    with Undo(log) as undo, ThreadPoolExecutor(1) as threads:
        undo.push(remove)
        make()
        undo.push(lambda: networks.disconnect(spec.cid, folder))
        yield undo, threads.submit(networks.connect, spec, folder)
        unfinished.end(folder)
        undo.keep()
