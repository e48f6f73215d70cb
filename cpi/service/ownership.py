"""Ownership records: a small file for each VM, disk, snapshot and stemcell of a client.

`<state_dir>/clients/<client>/<cid>` says who owns a resource and how much of the host it uses.
While the resource is created its record is called `pending-…`: it counts as well, so that
concurrent calls cannot exceed a quota. The call that creates it holds the record's lock; a pending
record without one is of a killed call, and is dropped.

A client's records are summed and added to under the lock of its folder.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from cpi import cid as cids
from cpi.errors import CPIError
from cpi.host.folders import entries
from cpi.host.layout import CLIENTS

_PENDING = "pending-"
_FRESH = "fresh-"


@dataclass(frozen=True)
class OwnershipRecord:
    """A resource. cpu: CPUs; memory, disk: MiB; runtimes: those a stemcell was imported for."""

    resource: str
    cpu: float = 0
    memory: int = 0
    disk: int = 0
    runtimes: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuotaUsage:
    """The sum of several records. vms, stemcells: how many."""

    vms: int = 0
    cpu: float = 0
    memory: int = 0
    disk: int = 0
    stemcells: int = 0

    def plus(self, record: OwnershipRecord) -> QuotaUsage:
        return QuotaUsage(
            vms=self.vms + (record.resource == cids.VM),
            cpu=self.cpu + record.cpu,
            memory=self.memory + record.memory,
            disk=self.disk + record.disk,
            stemcells=self.stemcells + (record.resource == cids.STEMCELL),
        )


# Raises an error when a client with this usage may not own that record as well.
Allowed = Callable[[QuotaUsage, OwnershipRecord], None]


def records_by_client(clients: Path) -> dict[str, list[Path]]:
    """Return the files of all records, pending ones too."""
    return {folder.name: entries(folder) for folder in entries(clients)}


class Ownership:
    """What a client owns. `client` is a checked name (see cpi.service.policy).

    Raises CPIError when its folder cannot be used.
    """

    def __init__(self, state_dir: Path, client: str) -> None:
        self.client = client
        self._all = state_dir / CLIENTS
        self._folder = self._all / client
        try:
            self._all.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise CPIError(f"cannot make {self._folder}: {error.strerror}") from error

    def find(self, cid: str, resource: str) -> OwnershipRecord | None:
        """Return the record of a resource, None if the client does not own it. Raises CPIError."""
        return _read(self._folder / cid) if _is_cid(cid, resource) else None

    def other_owners(self, cid: str, resource: str) -> list[str]:
        """Return the names of the other clients that own a resource."""
        if not _is_cid(cid, resource):
            return []
        owners = sorted(path.parent.name for path in self._all.glob(f"*/{cid}"))
        return [owner for owner in owners if owner != self.client]

    def used(self) -> QuotaUsage:
        """Return what the client uses in total. Raises CPIError for a corrupt record."""
        with self._locked():
            return self._used()

    @contextmanager
    def reserve(self, record: OwnershipRecord, allowed: Allowed) -> Iterator[Callable[[str], None]]:
        """Count a resource while it is created; yield what names it by its CID.

        Unless it is named, it does not count afterwards. Raises what `allowed` raises, and then
        nothing is counted.
        """
        pending = self._folder / f"{_PENDING}{os.urandom(16).hex()}"
        try:
            with self._locked():
                allowed(self._used(), record)
                held = _write(pending, record, lock=True)
            with held:
                yield lambda cid: self._name(pending, cid, record)
        finally:
            pending.unlink(missing_ok=True)

    def change(self, cid: str, record: OwnershipRecord, allowed: Allowed | None = None) -> None:
        """Replace a record. Raises what `allowed` raises, and then keeps the old one."""
        with self._locked():
            if allowed:
                allowed(self._used(), _growth(_read(self._folder / cid), record))
            self._replace(cid, record)

    def rename(self, cid: str, fresh: str) -> None:
        """Change the CID of a record."""
        with self._locked():
            (self._folder / cid).rename(self._folder / fresh)

    def forget(self, cid: str) -> None:
        """Delete a record."""
        (self._folder / cid).unlink(missing_ok=True)

    def hand_over(self, cid: str, other: str) -> None:
        """Leave a stemcell to another owner, with the runtimes it is to be deleted from."""
        theirs = Ownership(self._all.parent, other)
        old = self.find(cid, cids.STEMCELL)
        with theirs._locked():
            record = theirs.find(cid, cids.STEMCELL)
            if old and record:
                theirs._replace(cid, _merged(record, old))
        self.forget(cid)

    def stemcells(self, *, deleting: bool) -> AbstractContextManager[None]:
        """Lock out creating stemcells while one is deleted, and vice versa, for all clients."""
        return _flock(self._all, fcntl.LOCK_EX if deleting else fcntl.LOCK_SH)

    def _name(self, pending: Path, cid: str, record: OwnershipRecord) -> None:
        with self._locked():
            old = _read(self._folder / cid)
            if old is None:
                pending.rename(self._folder / cid)
            else:  # the same stemcell again
                self._replace(cid, _merged(old, record))

    def _replace(self, cid: str, record: OwnershipRecord) -> None:
        fresh = self._folder / f"{_FRESH}{cid}"
        _write(fresh, record).close()
        fresh.rename(self._folder / cid)

    def _used(self) -> QuotaUsage:
        """Return the sum of all records; the caller holds the folder's lock."""
        usage = QuotaUsage()
        for path in self._folder.iterdir():
            if path.name.startswith(_FRESH):
                path.unlink()  # of a killed call
            elif not (path.name.startswith(_PENDING) and _is_stale(path)):
                record = _read(path)  # a pending one may have gone meanwhile
                usage = usage if record is None else usage.plus(record)
        return usage

    def _locked(self) -> AbstractContextManager[None]:
        return _flock(self._folder, fcntl.LOCK_EX)


def _is_cid(cid: str, resource: str) -> bool:
    """Tell whether it is a valid CID, which can be a file's name."""
    return cids.named_runtime(cid, resource) is not None


@contextmanager
def _flock(folder: Path, how: int) -> Iterator[None]:
    """Hold the lock of a folder. Raises CPIError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CPIError(f"cannot use {folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _is_stale(path: Path) -> bool:
    """Tell whether a pending record is of a killed call, and drop it then."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
    return True


def _write(path: Path, record: OwnershipRecord, *, lock: bool = False) -> BinaryIO:
    """Write a record, flushed; return the open file, which holds the lock if wanted.

    It is an object, not a descriptor: wherever a signal interrupts, the lock ends with it.
    """
    file = open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
    if lock:
        fcntl.flock(file, fcntl.LOCK_EX)
    facts = asdict(record)
    facts["kind"] = facts.pop("resource")  # as files of earlier versions have it
    file.write(json.dumps(facts).encode())
    file.flush()
    os.fsync(file.fileno())
    return file


def _read(path: Path) -> OwnershipRecord | None:
    """Return a record, or None where there is none. Raises CPIError for a corrupt one."""
    try:
        document = json.loads(path.read_bytes())
        facts = {**document, "runtimes": tuple(document["runtimes"])}
        record = OwnershipRecord(facts.pop("kind"), **facts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CPIError(
            f"the record {path} cannot be read ({type(error).__name__}); it says whose "
            f"{path.name} is: mend it, or delete it with what it is of"
        ) from error
    return record


def _growth(old: OwnershipRecord | None, fresh: OwnershipRecord) -> OwnershipRecord:
    """Return how much more the fresh record uses, as a record of no resource."""
    old = old or OwnershipRecord("")
    cpu, memory = fresh.cpu - old.cpu, fresh.memory - old.memory
    return OwnershipRecord("", cpu, memory, fresh.disk - old.disk)


def _merged(record: OwnershipRecord, other: OwnershipRecord) -> OwnershipRecord:
    """Return the record of a stemcell that was imported for the runtimes of both."""
    return replace(record, runtimes=tuple(dict.fromkeys((*record.runtimes, *other.runtimes))))
