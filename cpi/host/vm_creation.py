"""A mark in a VM's folder while the VM is created or deleted; a killed call leaves it there.

BOSH does not use such a VM: its create_vm has not returned, or BOSH has asked to delete it.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

from cpi.host.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from typing import TypeVar

    from cpi.log import Log

    Connected = TypeVar("Connected")

_MARK = "unfinished"


@contextmanager
def creation(
    folder: Path,
    log: Log,
    *,
    make: Callable[[], object],
    remove: Callable[[], object],
    connect: Callable[[], Connected],
    disconnect: Callable[[], object],
) -> Iterator[tuple[Undo, Future[Connected]]]:
    """Make a VM's folder, then its networks in a thread while the body makes the rest of the VM.

    Yields the undo for the steps of the body, and the networks. When the body fails everything is
    rolled back; the folder, which `make` makes, is marked until the body ends.
    """
    from concurrent.futures import ThreadPoolExecutor  # slow; attach_disk does not need it

    with Undo(log) as undo, ThreadPoolExecutor(1) as threads:
        undo.push(remove)
        make()
        undo.push(disconnect)
        yield undo, threads.submit(connect)
        end(folder)
        undo.keep()


def make(folder: Path) -> None:
    """Make a VM's folder, for root only, with the mark."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(mode=0o700)
    begin(folder)


def begin(folder: Path) -> None:
    """Mark a VM's folder, if there is one."""
    if folder.is_dir():
        (folder / _MARK).touch(0o600)


def end(folder: Path) -> None:
    """Remove the mark: the VM is complete."""
    (folder / _MARK).unlink(missing_ok=True)


def is_marked(folder: Path) -> bool:
    """Tell whether a call that creates or deletes the VM is running, or was killed."""
    return (folder / _MARK).exists()
