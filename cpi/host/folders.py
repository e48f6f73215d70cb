"""What folders contain, and the space they use on the host's disk."""

import os
from pathlib import Path


def entries(folder: Path) -> list[Path]:
    """Return the paths in a folder, sorted by name; none if it does not exist."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def size_of(path: Path) -> int:
    """Return the bytes that a file or a folder uses, mounts in it excluded; 0 if it is gone."""
    try:
        status = path.lstat()
    except OSError:
        return 0
    total, device = status.st_blocks * 512, status.st_dev
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            try:
                status = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            if status.st_dev == device:
                total += status.st_blocks * 512
            elif name in folders:
                folders.remove(name)
    return total
