"""What is left of the kernel's limits for another VM; create_vm asks, so it takes below 1 ms.

A VM that the host has no room for dies in odd ways: with no inotify instance left, systemd ends
before it has a place to say why.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

from cpi.errors import VMCreationFailed
from cpi.host import limits
from cpi.host.inotify import Inotify
from cpi.host.limits import Limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# What a VM takes while it starts; it is refused where less is left.
_INOTIFY, _THREADS, _FILES, _TERMINALS, _KEYS, _NEIGHBOURS = 8, 64, 256, 2, 4, 2


def require(max_vms: int, *, systemd: bool) -> None:
    """Refuse another VM if a limit of the kernel leaves no room for it.

    max_vms: VMs that the proposed value is for. Raises VMCreationFailed.
    """
    reached = exhausted(systemd=systemd)
    if reached is not None:
        # Neighbours that are gone are forgotten within a minute; nothing else comes back.
        raise VMCreationFailed(
            f"the host has no room for another VM: {advice(reached, max_vms)}",
            ok_to_retry=reached is limits.NEIGHBOURS,
        )


def exhausted(*, systemd: bool) -> Limit | None:
    """Return a limit that leaves no room for another VM, with systemd or without, or None."""
    if systemd and not _has_inotify_instances(_INOTIFY):
        return limits.INOTIFY_INSTANCES
    for limit, used, needed in _COUNTED:
        most, now = limit.current(), used()
        if most is not None and now is not None and now + needed > most:
            return limit
    return None


def advice(limit: Limit, max_vms: int) -> str:
    """Return which limit is reached, and how to raise it."""
    return f"{reason(limit)}; raise it: {fix(limit, max_vms)}"


def reason(limit: Limit) -> str:
    """Return which limit is reached."""
    return f"the kernel's limit {limit.sysctl}={limit.current()} ({limit.of}) is reached"


def fix(limit: Limit, max_vms: int) -> str:
    """Return the command that raises a limit so that it is no longer reached."""
    double = 2 * (limit.current() or 0)
    value = max(limit.needed(max_vms), min(double, limit.maximum or double))
    return f"sysctl -w {limit.sysctl}={value}"


def _has_inotify_instances(number: int) -> bool:
    """Tell whether this many can be made: the kernel counts them, and does not say how many."""
    instances: list[Inotify] = []
    try:
        for _ in range(number):
            instances.append(Inotify())
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return False
    finally:
        for instance in instances:
            instance.close()
    return True


def _threads() -> int | None:
    return _number("/proc/loadavg", lambda text: int(text.split()[3].partition("/")[2]))


def _open_files() -> int | None:
    return _number("/proc/sys/fs/file-nr", lambda text: int(text.split()[0]))


def _terminals() -> int | None:
    """Return how many terminals are in use or out of a container's reach."""
    used = _number("/proc/sys/kernel/pty/nr", int)
    reserved = _number("/proc/sys/kernel/pty/reserve", int)
    return None if used is None or reserved is None else used + reserved


def _keys_of_root() -> int | None:
    """Return how many keys count against root's quota (proc(5), key-users)."""
    return _number("/proc/key-users", lambda text: int(_line_of_root(text)[3].partition("/")[0]))


def _line_of_root(text: str) -> list[str]:
    return next(words for line in text.splitlines() if (words := line.split())[0] == "0:")


def _neighbours() -> int | None:
    # One line for each CPU below the heading, each with the number of all entries.
    return _number(
        "/proc/net/stat/arp_cache", lambda text: int(text.splitlines()[1].split()[0], 16)
    )


def _number(path: str, parse: Callable[[str], int]) -> int | None:
    with suppress(OSError, ValueError, IndexError, StopIteration):
        return parse(Path(path).read_text())
    return None


_COUNTED: tuple[tuple[Limit, Callable[[], int | None], int], ...] = (
    (limits.PID_MAX, _threads, _THREADS),
    (limits.THREADS_MAX, _threads, _THREADS),
    (limits.FILE_MAX, _open_files, _FILES),
    (limits.TERMINALS, _terminals, _TERMINALS),
    (limits.ROOT_KEYS, _keys_of_root, _KEYS),
    (limits.NEIGHBOURS, _neighbours, _NEIGHBOURS),
)
