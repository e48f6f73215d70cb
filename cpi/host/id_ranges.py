"""Ranges of user and group ids, each reserved for one VM, like addresses."""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cpi.errors import CloudError
from cpi.host.id_maps import SIZE
from cpi.host.reservations import Reservations

_SUBORDINATE = ("/etc/subuid", "/etc/subgid")


class IdRanges:
    """The ranges of all VMs, reserved in one folder."""

    def __init__(self, folder: Path) -> None:
        self._reserved = Reservations(folder)

    def reserve(self, vm_cid: str, ids: str) -> int:
        """Reserve a range for a VM out of `ids` ("FIRST-LAST"); return its first id.

        Raises CloudError when all are taken.
        """
        free = list(_unassigned(ids, list(_assigned())))
        # CPIs of one host with folders of their own should not meet; so not the first free range.
        start = zlib.crc32(vm_cid.encode()) % max(1, len(free))
        for first in free[start:] + free[:start]:
            if self._reserved.reserve(str(first), vm_cid) == vm_cid:
                return first
        raise CloudError(
            f"no range of {SIZE} user ids is free in {ids}: all {len(free)} belong to VMs; delete "
            "VMs, or configure more (user_namespace_ids)"
        )

    def release(self, vm_cid: str, first: int) -> None:
        """Release a VM's range, if it is still that VM's."""
        self._reserved.release_name(str(first), vm_cid)


def _unassigned(ids: str, assigned: list[tuple[int, int]]) -> Iterator[int]:
    """Yield the first id of each whole range that no entry of subuid or subgid overlaps."""
    lowest, highest = (int(word) for word in ids.split("-"))
    for first in range(lowest, highest - SIZE + 2, SIZE):
        if not any(first < end and start < first + SIZE for start, end in assigned):
            yield first


def _assigned() -> Iterator[tuple[int, int]]:
    """Yield what users of the host may map themselves: first id, and the one after the last."""
    for name in _SUBORDINATE:
        with suppress(OSError):
            for line in Path(name).read_text(errors="replace").splitlines():
                words = line.split(":")
                if len(words) == 3 and words[1].isdigit() and words[2].isdigit():
                    yield int(words[1]), int(words[1]) + int(words[2])
