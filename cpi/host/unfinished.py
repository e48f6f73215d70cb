"""A mark in a VM's folder while the VM is made or deleted, by which a killed call is known later.

BOSH does not count on such a VM: its create has never answered, or its delete was asked for.
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
    undone; until it ends the folder, which `make` has made, is marked.
    """
    from concurrent.futures import ThreadPoolExecutor  # costs what attach_disk saves

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
    """Record that the VM is made."""
    (folder / _MARK).unlink(missing_ok=True)


def is_marked(folder: Path) -> bool:
    """Tell whether a call that makes or deletes the VM is running, or was killed."""
    return (folder / _MARK).exists()
