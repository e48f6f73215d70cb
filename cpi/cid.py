"""CIDs: `<runtime>-<kind>-<id>`, so that every call routes to its runtime without a database.

A CID that comes from outside is data. It is parsed here before it meets a path, a label or XML:
nothing but lower-case letters, digits and single dashes passes.
"""

import os
import re

from cpi.errors import CPIError, DiskNotFound, NetworkNotFound, StemcellNotFound, VMNotFound
from cpi.text import shown

VM = "vm"
DISK = "disk"
STEMCELL = "stemcell"
SNAPSHOT = "snapshot"
NETWORK = "network"  # a managed network: its runtime makes the CID as it likes

# Container runtimes take identifiers of up to 76 characters; file names take 255.
# Compiled on first use: `info` does not need it.
_CID = r"([a-z][a-z0-9]{0,15})-(vm|disk|stemcell|snapshot)-([a-z0-9]{1,48})"

# The error for a CID of this kind that does not exist; CPIError for a snapshot, as BOSH has no
# other.
NOT_FOUND: dict[str, type[CPIError]] = {
    VM: VMNotFound,
    DISK: DiskNotFound,
    STEMCELL: StemcellNotFound,
    NETWORK: NetworkNotFound,
}


def new(runtime: str, kind: str, identifier: str | None = None) -> str:
    """Return a new CID; random (128 bits) unless an identifier is given."""
    return f"{runtime}-{kind}-{identifier or os.urandom(16).hex()}"


def named_runtime(cid: str, kind: str) -> str | None:
    """Return the runtime that a CID of this kind names, None when it is no such CID."""
    match = re.fullmatch(_CID, cid)
    return match[1] if match is not None and match[2] == kind else None


def runtime_of(cid: str, kind: str) -> str:
    """Return the runtime that a CID of this kind names.

    Raises VMNotFound, DiskNotFound, StemcellNotFound or CPIError when it is no such CID, since a
    thing with that name cannot exist.
    """
    name = named_runtime(cid, kind)
    if name is None:
        error = NOT_FOUND.get(kind, CPIError)
        raise error(
            f"{shown(cid)} is not a {kind} CID of this CPI (they look like <runtime>-{kind}-1f0c…)"
        )
    return name
