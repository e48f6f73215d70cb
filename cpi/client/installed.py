"""The host's own installation of this CPI, for a thin client without an endpoint.

The BOSH release has only the thin client. Without an endpoint it runs the CPI that is installed on
the host, as root: so `bosh create-env` needs no service.
"""

from __future__ import annotations

import os

from cpi.errors import CPIError, Elsewhere

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_PATHS = ("/usr/local/bin/cpi", "/opt/bosh-containerd-cpi/bin/cpi")

_INSTALL = (
    "install it there (in a checkout of bosh-containerd-cpi, as root: make install), or set "
    "`endpoint` to the service of the host"
)


def program(config: Mapping[str, object]) -> str:
    """Return the path of the installed `cpi`. Raises CPIError that says how to install it."""
    if not hasattr(os, "memfd_create"):
        raise CPIError("no endpoint is set, and only Linux can run the CPI itself; set `endpoint`")
    given = config.get("program") or ""
    if not isinstance(given, str) or (given and not given.startswith("/")):
        raise CPIError("program must be the absolute path of an installed cpi")
    places = (given,) if given else DEFAULT_PATHS
    for place in places:
        if os.access(place, os.X_OK):
            return place
    raise CPIError(
        f"no endpoint is set, and this host has no installed CPI ({', '.join(places)}); {_INSTALL}"
    )


def run(elsewhere: Elsewhere, argv: Sequence[str], answer_to: int) -> None:
    """Become the installed program, with the request as its stdin. Raises OSError."""
    given = os.memfd_create("request")
    view = memoryview(elsewhere.request)
    while view:
        view = view[os.write(given, view) :]
    os.lseek(given, 0, os.SEEK_SET)
    os.dup2(given, 0)
    os.dup2(answer_to, 1)
    os.execv(elsewhere.program, [elsewhere.program, *argv])  # noqa: S606 - that is the purpose
