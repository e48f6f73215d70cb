"""CIDs: `<runtime>-<resource>-<id>`, so that every call routes to its runtime without a database.

A CID that comes from outside is data. It is parsed here before it meets a path, a label or XML:
only lower-case letters, digits and single dashes pass.
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

# The error for a CID that does not exist; CPIError for a snapshot, as BOSH has no other.
NOT_FOUND: dict[str, type[CPIError]] = {
    VM: VMNotFound,
    DISK: DiskNotFound,
    STEMCELL: StemcellNotFound,
    NETWORK: NetworkNotFound,
}


def new(runtime: str, resource: str, identifier: str | None = None) -> str:
    """Return a new CID of a resource; random (128 bits) unless an identifier is given."""
    return f"{runtime}-{resource}-{identifier or os.urandom(16).hex()}"


def named_runtime(cid: str, resource: str) -> str | None:
    """Return the runtime that a CID of this resource names, None when it is no such CID."""
    match = re.fullmatch(_CID, cid)
    return match[1] if match is not None and match[2] == resource else None


def runtime_of(cid: str, resource: str) -> str:
    """Return the runtime that a CID of this resource names.

    Raises the resource's error of NOT_FOUND when it is no such CID, since it cannot exist.
    """
    name = named_runtime(cid, resource)
    if name is None:
        error = NOT_FOUND.get(resource, CPIError)
        pattern = f"<runtime>-{resource}-1f0c…"
        raise error(f"{shown(cid)} is not a {resource} CID of this CPI (they look like {pattern})")
    return name
