"""Persistent disks in the stand-in for BOSH's agent (see stand_in_agent).

The checks, the mounts and their order are the real agent's, for disks of which the CPI sends a path
as the hint: a folder that is mounted from outside the container ("bind mode"), or a device. What
a machine does beyond that is in stand_in_machine_disks.
"""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Runner = Callable[[Sequence[str]], str]
UNMOUNT_TRIES = 600  # one a second, like the real agent: a disk may be busy until jobs have ended


class AgentError(Exception):
    """A message failed; the error's text goes to the caller."""


def run_program(argv: Sequence[str]) -> str:
    """Run a program and return its stdout; raises AgentError with its stderr."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AgentError(f"Running command: '{' '.join(argv)}', stderr: '{done.stderr.strip()}'")
    return done.stdout


class Store:
    """The agent's small files, readable by root only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str, default: Any = None) -> Any:
        """Return the content of a JSON file, or `default` if there is none."""
        try:
            return json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return default

    def write(self, name: str, text: str) -> None:
        """Write a file atomically, mode 0600, and sync it to the disk."""
        partial = self.folder / f".{name}.{os.getpid()}.{threading.get_ident()}"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / name)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Disks:
    """Persistent disks: hints that the director sends, and the mounts they lead to."""

    HINTS = "persistent_disk_hints.json"

    def __init__(self, store: Store, vcap: Path, linux: dict[str, Any], run: Runner) -> None:
        self.store, self.run = store, run
        self.bind = bool(linux.get("BindMountPersistentDisk"))
        self.whole = bool(linux.get("UsePreformattedPersistentDisk"))
        self.target, self.migration = str(vcap / "store"), str(vcap / "store_migration_target")
        self.settings: dict[str, Any] = {}
        self.retry_delay = 1.0  # seconds

    def all(self) -> dict[str, Any]:
        """Return what is kept of the hints of all known disks, by CID."""
        given = (self.settings.get("disks") or {}).get("persistent") or {}
        known = {cid: self.kept(hint) for cid, hint in given.items()}
        return {**known, **self.store.read(self.HINTS, {})}

    def kept(self, hint: Any) -> Any:
        """Return what to keep of a hint: its path."""
        return hint_path(hint)

    def add(self, cid: str, hint: Any) -> dict[str, str]:
        """Keep the hint of a disk."""
        hints = {**self.store.read(self.HINTS, {}), cid: self.kept(hint)}
        self.store.write(self.HINTS, json.dumps(hints))
        return {}

    def remove(self, cid: str) -> dict[str, str]:
        """Forget a disk."""
        hints = self.store.read(self.HINTS, {})
        hints.pop(cid, None)
        self.store.write(self.HINTS, json.dumps(hints))
        return {}

    def hint(self, cid: str) -> Any:
        """Return what is kept of a disk's hint; raises AgentError for an unknown disk."""
        known = self.all()
        if cid not in known:
            raise AgentError(f"Persistent disk with volume id '{cid}' could not be found")
        return known[cid]

    def path(self, cid: str) -> str:
        """Return where a disk is; raises AgentError."""
        path = str(self.hint(cid))
        if not path:
            raise AgentError("Getting real device path: path is missing")
        return path

    def device(self, cid: str) -> str:
        """Return what to mount for a disk: its path or first partition; raises AgentError."""
        path = self.path(cid)
        return path if self.whole else partition_path(path, 1)

    def present_device(self, cid: str) -> str | None:
        """Return what to mount for a disk, or None if the disk is gone; raises AgentError."""
        return self.device(cid)

    def mounts(self) -> list[tuple[str, str]]:
        """Return the mounts: (source, mount point)."""
        rows = (line.split() for line in self.run(["mount"]).splitlines())
        return [(row[0], row[2]) for row in rows if len(row) > 2]

    def source(self, point: str) -> str | None:
        """Return the source of a mount point, or None."""
        return next((source for source, known in self.mounts() if known == point), None)

    def list(self) -> list[str]:
        """Return the CIDs of disks that are mounted or, in bind mode, are a mount point."""
        seen = {name for mount in self.mounts() for name in mount}
        return [cid for cid in self.all() if self.present_device(cid) in seen]

    def mount(self, cid: str) -> dict[str, str]:
        """Mount a disk as the store, or as the migration target if there is a store."""
        device, target, current = self.device(cid), self.target, self.source(self.target)
        if current is not None:
            # The real agent compares with the first partition, whatever it is going to mount.
            if current == partition_path(self.path(cid), 1):
                return {}
            target = self.migration
        Path(target).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mount(device, target)
        self.store.write("managed_disk_settings.json", cid)
        return {}

    def _mount(self, source: str, target: str, *more: str) -> None:
        for known, point in self.mounts():
            if (known, point) == (source, target):
                return
            if known == source or point == target:
                problem = f"Device {known} is already mounted to {point}"
                raise AgentError(f"{problem}, can't mount {source} to {target}")
        options = (self.settings.get("env") or {}).get("persistent_disk_mount_options") or []
        bind = ["bind"] if self.bind else []
        flags = [word for option in (*options, *bind, *more) for word in ("-o", option)]
        self.run(["mount", source, target, *flags])

    def unmount(self, cid: str) -> dict[str, str]:
        """Unmount a disk by its path."""
        device = self.present_device(cid)
        if device is not None and self._unmount(device):
            return {"message": f"Unmounted partition of {device}"}
        return {"message": f"Partition of {device or cid} is not mounted"}

    def _unmount(self, name: str) -> bool:
        """Unmount a source or mount point, retrying while it is busy; False if not mounted."""
        if not any(name in mount for mount in self.mounts()):
            return False
        for left in reversed(range(UNMOUNT_TRIES)):
            try:
                self.run(["umount", name])
                break
            except AgentError:
                if not left:
                    raise
                time.sleep(self.retry_delay)
        return True

    def migrate(self) -> dict[str, str]:
        """Copy the store to the migration target and mount that as the store."""
        if not self.bind:
            self._move(self.target, self.target, "ro")
        self.run(["cp", "-a", f"{self.target}/.", self.migration])
        self._unmount(self.target)
        self._move(self.migration, self.target)
        return {}

    def _move(self, point: str, target: str, *options: str) -> None:
        """Unmount a file system and mount it at another place, or with other options."""
        source = self.source(point)
        if source is None:
            raise AgentError(f"Error finding device for mount point {point}")
        self._unmount(point)
        self._mount(source, target, *options)


def partition_path(device: str, number: int) -> str:
    """Return the device node of a disk's partition."""
    return f"{device}{'p' if device.startswith('/dev/nvme') else ''}{number}"


def hint_path(hint: Any) -> str:
    """Return the path in a disk hint, which is a path or a mapping with one."""
    path = hint.get("path", "") if isinstance(hint, dict) else hint
    return path if isinstance(path, str) else ""
