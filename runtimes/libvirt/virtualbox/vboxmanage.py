"""VirtualBox' own command, for what libvirt's driver cannot do.

That driver gives the same error whether VirtualBox is missing, too old or too new, and it starts no
VM without a display: VirtualBox since 6.1 refuses the empty environment that it passes.
"""

import re
import time

from cpi.errors import CloudError, CPIError, NotSupported
from cpi.host.process import CommandFailed, run

NOT_READY = "unable to initialize VirtualBox driver API"

# The VirtualBox that a libvirt supports, the newest first (vbox_common.h, installUniformedAPI):
# since which libvirt (9.1.0 is 9001000), in words, and the first and last major and minor version.
SUPPORTED: tuple[tuple[int, str, tuple[int, int], tuple[int, int]], ...] = (
    (11_001_000, "7.0", (7, 0), (7, 0)),
    (9_001_000, "6.1 and 7.0", (6, 1), (7, 0)),
    (0, "5.2 to 6.1", (5, 2), (6, 1)),
)

_PROGRAM = "VBoxManage"
_HINT = "install VirtualBox"
# Debian's writes a warning before it when the kernel's module is missing.
_VERSION = re.compile(rb"^(\d+)\.(\d+)\.(\d+)", re.MULTILINE)
# VirtualBox unlocks a VM a moment after it has ended.
_TRIES, _PAUSE = 20, 0.5  # seconds


def start(vm_cid: str, uuid: str) -> None:
    """Start a VM without a display. Raises CloudError with what VirtualBox says."""
    argv = [_PROGRAM, "startvm", uuid, "--type", "headless"]
    for left in reversed(range(_TRIES)):
        try:
            run(argv, install_hint=_HINT)
            return
        except CommandFailed as error:
            if not left or "already locked" not in error.stderr:
                raise CloudError(f"starting the VM {vm_cid}: {error.message}") from None
        time.sleep(_PAUSE)


def version() -> tuple[int, int, int] | None:
    """Return the installed VirtualBox' version, or None."""
    try:
        numbers = _VERSION.search(run([_PROGRAM, "--version"]))
    except CommandFailed:
        return None
    return (int(numbers[1]), int(numbers[2]), int(numbers[3])) if numbers else None


def supported(libvirt: int) -> str:
    """Return in words which VirtualBox a libvirt supports. libvirt: its version, as a number."""
    return next(f"VirtualBox {words}" for since, words, _, _ in SUPPORTED if libvirt >= since)


def refusal(libvirt: int) -> CPIError:
    """Return why libvirt's driver did not start. libvirt: its version, as a number."""
    words, first, last = next(row[1:] for row in SUPPORTED if libvirt >= row[0])
    mine = f"libvirt {libvirt // 1_000_000}.{libvirt // 1000 % 1000}.{libvirt % 1000}"
    installed = version()
    if installed is None:
        return CloudError(
            f"VirtualBox is not installed ({_PROGRAM} does not answer): install {words}, which is "
            f"what {mine} takes, and restart libvirtd"
        )
    theirs = "VirtualBox " + ".".join(map(str, installed))
    if first <= installed[:2] <= last:
        return CloudError(
            f"{mine} takes {theirs} and could not load it: it looks for it when it starts, so "
            "restart libvirtd, whose log says more"
        )
    return NotSupported(
        f"{mine} does not support {theirs}, which is installed, but VirtualBox {words}: install "
        "that and restart libvirtd, or use the runtime kvm"
    )
