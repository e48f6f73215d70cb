"""What each client of the service has: a small file for each VM, disk, snapshot and stemcell.

`<state_dir>/clients/<client>/<cid>` says whose a thing is and what it takes from the host. While a
thing is made its record is called `pending-…`: it counts as well, so that many calls at once cannot
take more than one after the other. The call that makes it holds its lock; a pending record that
nobody holds is of a call that was killed, and is dropped.

The sum of a client's records and what is added to them are looked at under the lock of its folder.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    """One thing. cpu: CPUs; memory, disk: MiB; runtimes: those that a stemcell was imported for."""

    resource: str
    cpu: float = 0
    memory: int = 0
    disk: int = 0
    runtimes: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuotaUsage:
    """What several things take together. vms, stemcells: how many; the rest as in a record."""

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


# Raises an error when a client that uses this already may not have that as well.
Allowed = Callable[[QuotaUsage, OwnershipRecord], None]


def records_by_client(clients: Path) -> dict[str, list[Path]]:
    """Return the files of all records, those of things that are being made among them."""
    return {folder.name: entries(folder) for folder in entries(clients)}


class Ownership:
    """What one client has. `client` is a checked name (see cpi.service.policy).

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
        """Return the record of a thing, or None when it is not the client's. Raises CPIError."""
        return _read(self._folder / cid) if _is_cid(cid, resource) else None

    def other_owners(self, cid: str, resource: str) -> list[str]:
        """Return the names of the other clients that have a thing."""
        if not _is_cid(cid, resource):
            return []
        owners = sorted(path.parent.name for path in self._all.glob(f"*/{cid}"))
        return [owner for owner in owners if owner != self.client]

    def used(self) -> QuotaUsage:
        """Return what the client has in all. Raises CPIError for a record that is damaged."""
        with self._locked():
            return self._used()

    @contextmanager
    def reserve(self, record: OwnershipRecord, allowed: Allowed) -> Iterator[Callable[[str], None]]:
        """Count a thing in while it is made; yields what names it by its CID.

        Not named by then, it counts no more. Raises what `allowed` raises, and then nothing is
        counted in.
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
        """Replace the record of a thing. Raises what `allowed` raises, with the old one kept."""
        with self._locked():
            if allowed:
                allowed(self._used(), _growth(_read(self._folder / cid), record))
            self._replace(cid, record)

    def rename(self, cid: str, fresh: str) -> None:
        """Have a thing under another CID."""
        with self._locked():
            (self._folder / cid).rename(self._folder / fresh)

    def forget(self, cid: str) -> None:
        """Have a thing no more."""
        (self._folder / cid).unlink(missing_ok=True)

    def hand_over(self, cid: str, other: str) -> None:
        """Leave a stemcell to another client that has it too, and to it what there is to delete."""
        theirs = Ownership(self._all.parent, other)
        old = self.find(cid, cids.STEMCELL)
        with theirs._locked():
            record = theirs.find(cid, cids.STEMCELL)
            if old and record:
                theirs._replace(cid, _merged(record, old))
        self.forget(cid)

    @contextmanager
    def stemcells(self, *, deleting: bool) -> Iterator[None]:
        """Keep deleting stemcells apart from everything that makes some, of all clients."""
        with _flock(self._all, fcntl.LOCK_EX if deleting else fcntl.LOCK_SH):
            yield

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
        """The sum of all records; the caller holds the folder's lock."""
        usage = QuotaUsage()
        for path in self._folder.iterdir():
            if path.name.startswith(_FRESH):
                path.unlink()  # of a call that was killed
            elif not (path.name.startswith(_PENDING) and _is_stale(path)):
                record = _read(path)  # a pending one may have gone meanwhile
                usage = usage if record is None else usage.plus(record)
        return usage

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with _flock(self._folder, fcntl.LOCK_EX):
            yield


def _is_cid(cid: str, resource: str) -> bool:
    """Tell whether it is a CID that can be a file's name."""
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
    """Tell whether a pending record is of a call that was killed, and drop it then."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
    return True


def _write(path: Path, record: OwnershipRecord, *, lock: bool = False) -> BinaryIO:
    """Write a record to the disk itself; return the open file, which holds the lock if wanted.

    Not a number but a file: wherever a signal interrupts, the lock ends with the object.
    """
    file = open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
    if lock:
        fcntl.flock(file, fcntl.LOCK_EX)
    facts = asdict(record)
    facts["kind"] = facts.pop("resource")
    file.write(json.dumps(facts).encode())
    file.flush()
    os.fsync(file.fileno())
    return file


def _read(path: Path) -> OwnershipRecord | None:
    """Return a record, or None where there is none. Raises CPIError for a damaged one."""
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
    """What a thing takes more than before; it is no thing itself."""
    old = old or OwnershipRecord("")
    return OwnershipRecord(
        "",
        cpu=fresh.cpu - old.cpu,
        memory=fresh.memory - old.memory,
        disk=fresh.disk - old.disk,
    )


def _merged(record: OwnershipRecord, other: OwnershipRecord) -> OwnershipRecord:
    """A stemcell that was imported for the runtimes of both."""
    return replace(record, runtimes=tuple(dict.fromkeys((*record.runtimes, *other.runtimes))))
