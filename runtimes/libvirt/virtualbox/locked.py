"""libvirt's objects, each call of which holds a lock.

The VirtualBox driver has one session for all connections of a daemon and no lock around it
(vbox_common.c, vbox_driver), so that concurrent calls about two VMs can fail.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Lock = Callable[[], AbstractContextManager[None]]

_PLAIN = (str, bytes, int, float, type(None), tuple, dict)


class Locked:
    """One of libvirt's objects, and through it all that its methods return."""

    def __init__(self, wrapped: Any, lock: Lock) -> None:
        self._wrapped = wrapped
        self._lock = lock

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._wrapped, name)

        def call(*arguments: Any) -> Any:
            with self._lock():
                return self._of(method(*arguments))

        return call

    def _of(self, result: Any) -> Any:
        if isinstance(result, list):
            return [self._of(item) for item in result]
        return result if isinstance(result, _PLAIN) else Locked(result, self._lock)
