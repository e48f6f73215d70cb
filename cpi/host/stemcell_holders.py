"""Who holds a stemcell: each director, or state of `bosh create-env`, that has uploaded it.

A stemcell's CID comes from its content, so all that upload the same one share it. A file for each
holder, `<state_dir>/stemcells/<cid>/<digest>`, keeps it until the last one has deleted it.
Stemcells of earlier versions have no holders, so the first delete of one of these is the last.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from contextlib import contextmanager, suppress
from typing import NamedTuple

from cpi.host.facts_file import read_facts, write_facts
from cpi.host.folders import entries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cpi.host.layout import Layout

# Of one client on one stemcell. A CI whose runs are killed leaves a holder each time.
_MAX_HOLDERS = 64


class Holder(NamedTuple):
    """A director by its director_uuid. client: of the host's service; "" is this host's root."""

    client: str
    director: str


class StemcellHolders:
    """The holders of all stemcells, as one of them sees it."""

    def __init__(self, layout: Layout, own: Holder) -> None:
        self._folder = layout.stemcells
        self._own = own

    def importing(self) -> AbstractContextManager[None]:
        """Lock out deleting."""
        return self._locked(fcntl.LOCK_SH)

    def deleting(self) -> AbstractContextManager[None]:
        """Lock out importing."""
        return self._locked(fcntl.LOCK_EX)

    def add(self, stemcell: str) -> None:
        """Become a holder. Of too many of one client the oldest is forgotten."""
        folder = self._folder / stemcell
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / _name(self._own)
        write_facts(path, self._own._asdict())
        others = [file for file in self._files(stemcell) if file != path]
        own = [file for file in others if _read(file).client == self._own.client]
        for file in sorted(own, key=_written, reverse=True)[_MAX_HOLDERS - 1 :]:
            file.unlink(missing_ok=True)

    def drop(self, stemcell: str) -> None:
        """Stop being a holder."""
        (self._folder / stemcell / _name(self._own)).unlink(missing_ok=True)

    def others(self, stemcell: str) -> list[Holder]:
        """Return the other holders."""
        return [other for other in map(_read, self._files(stemcell)) if other != self._own]

    def forget(self, stemcell: str) -> None:
        """Remove what is known of a stemcell that is deleted."""
        shutil.rmtree(self._folder / stemcell, ignore_errors=True)

    def _files(self, stemcell: str) -> list[Path]:
        files = entries(self._folder / stemcell)
        return [file for file in files if file.suffix != ".part"]  # of a killed call

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        self._folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)


def _name(holder: Holder) -> str:
    return hashlib.sha256("\0".join(holder).encode(errors="replace")).hexdigest()[:32]


def _read(file: Path) -> Holder:
    """Return the holder in a file; one without names, if the file cannot be read."""
    with suppress(Exception):
        facts = read_facts(file) or {}
        return Holder(str(facts["client"]), str(facts["director"]))
    return Holder("", file.name)


def _written(file: Path) -> float:
    """Return when a file was written, in seconds."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0
