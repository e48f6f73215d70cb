"""Files of facts, JSON objects that say what a disk, a snapshot or a VM's folder is."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from cpi.errors import CloudError, NoDiskSpace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cpi.model import JsonObject


def read_facts(path: Path) -> dict[str, Any] | None:
    """Read a file of facts; None when there is none. Raises CloudError for a corrupt one."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CloudError(f"the facts in {path} are damaged: {error}") from None
    if not isinstance(document, dict):
        raise CloudError(f"the facts in {path} are damaged: they are no object")
    return document


def write_facts(path: Path, document: JsonObject) -> None:
    """Write a file of facts atomically, for root only. Raises NoDiskSpace."""
    text = json.dumps(document)
    fresh = path.with_name(f"{path.name}.part")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _overwrite(path, text)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _overwrite(path: Path, text: str) -> None:
    """Write facts into their block: on a full host, disks can still be released."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NoDiskSpace(f"the file system of {path} is full") from None
    try:
        status = os.fstat(fd)
        if len(text) > max(status.st_size, status.st_blocks * 512):
            raise NoDiskSpace(f"the file system of {path} is full")
        os.pwrite(fd, text.ljust(status.st_size).encode(), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
