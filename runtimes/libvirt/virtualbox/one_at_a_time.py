"""libvirt's objects, each call of which waits for its turn.

The VirtualBox driver has one session for all connections of a daemon and no lock around it
(vbox_common.c, vbox_driver): calls about two VMs at once fail for no reason of their own.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Turn = Callable[[], AbstractContextManager[None]]

_PLAIN = (str, bytes, int, float, type(None), tuple, dict)


class OneAtATime:
    """One of libvirt's objects, and through it all that its methods return."""

    def __init__(self, thing: Any, turn: Turn) -> None:
        self._thing = thing
        self._turn = turn

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._thing, name)

        def call(*arguments: Any) -> Any:
            with self._turn():
                return self._of(method(*arguments))

        return call

    def _of(self, result: Any) -> Any:
        if isinstance(result, list):
            return [self._of(item) for item in result]
        return result if isinstance(result, _PLAIN) else OneAtATime(result, self._turn)
