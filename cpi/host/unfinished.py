"""A mark in a VM's folder while the VM is made or deleted, by which a killed call is known later.

BOSH does not count on such a VM: its create has never answered, or its delete was asked for.
"""

from pathlib import Path

_MARK = "unfinished"


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
    """Tell whether a call that makes or deletes the VM is at work, or was killed."""
    return (folder / _MARK).exists()
