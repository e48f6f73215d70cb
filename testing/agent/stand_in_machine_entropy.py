"""Random numbers for the stand-in agent on a machine, as soon as it starts.

Without a source of them, as under a CPU that is emulated, the kernel gathers for a second before
it gives any, and Python, parted and mke2fs would wait for it. A machine that is only ever tested
has no secrets to make: what the kernel has gathered until then counts as enough.
"""

import fcntl
import os
import struct
from contextlib import suppress

RNDADDENTROPY = 0x40085203  # linux/random.h
SIZE = 64  # bytes; the kernel wants 32


def credit() -> None:
    """Make the kernel give random numbers from now on; raises OSError."""
    device = os.open("/dev/random", os.O_WRONLY)
    try:
        # In a container with a user namespace it is refused, and the host has enough.
        with suppress(PermissionError):
            fcntl.ioctl(device, RNDADDENTROPY, struct.pack("ii", SIZE * 8, SIZE) + bytes(SIZE))
    finally:
        os.close(device)
