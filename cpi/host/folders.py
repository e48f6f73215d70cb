"""What is in folders, and what they take on a host's disk."""

import os
from pathlib import Path


def entries(folder: Path) -> list[Path]:
    """Return what is in a folder, by name; nothing is in one that is not there."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def size_of(path: Path) -> int:
    """Return the bytes that a file or a folder takes, without what is mounted in it; 0: gone."""
    try:
        status = path.lstat()
    except OSError:
        return 0
    total, device = status.st_blocks * 512, status.st_dev
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            try:
                found = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            if found.st_dev == device:
                total += found.st_blocks * 512
            elif name in folders:
                folders.remove(name)
    return total
