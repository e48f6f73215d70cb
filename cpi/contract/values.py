"""Checks of single arguments of methods, on top of cpi.validate.

Every check takes `where` (what the value is, for the message) and the value, and returns the value
or raises InvalidCall. Messages show a value's type; the value itself only where it cannot be a
secret: numbers and CIDs, never other strings.
"""

from __future__ import annotations

import json
import re

from cpi import cid, validate
from cpi.errors import CPIError, InvalidCall
from cpi.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# 1 PiB: larger sizes are mistakes, and would overflow the 64-bit byte counts below us.
MAX_MIB = 2**30
MAX_METADATA, MAX_METADATA_SIZE = 128, 32 << 10  # entries, bytes

# What CIDs of other CPIs are made of; anything else is an attack or an accident.
_HARMLESS = r"[A-Za-z0-9._:/-]{1,255}"

_MEBIBYTES = validate.integer(1, MAX_MIB, "MiB")


def wrong(where: str, wanted: str, value: object) -> InvalidCall:
    """Return the error for a value of the wrong type or size."""
    return validate.wrong(where, wanted, value, InvalidCall)


def string(where: str, value: object) -> str:
    """Check a string of 1 to 4096 printable characters."""
    text = validate.text(where, value, InvalidCall)
    if not text or len(text) > 4096 or not text.isprintable():
        raise InvalidCall(f"{where} must be 1 to 4096 printable characters")
    return text


def path(where: str, value: object) -> str:
    """Check an absolute path."""
    return validate.path()(where, string(where, value), InvalidCall)


def mapping(where: str, value: object) -> Mapping[str, object]:
    """Check an object; null counts as an empty one, as Go encodes a nil map."""
    return {} if value is None else validate.mapping(where, value, InvalidCall)


def mebibytes(where: str, value: object) -> int:
    """Check a size in MiB."""
    return _MEBIBYTES(where, value, InvalidCall)


def metadata(where: str, value: object) -> Mapping[str, str]:
    """Return an object with its values as strings: JSON for those that are none, "" for null.

    Raises InvalidCall for more than MAX_METADATA entries or MAX_METADATA_SIZE bytes: whoever lists
    VMs reads all of it.
    """
    texts = {}
    for name, item in mapping(where, value).items():
        if item is None:
            item = ""
        texts[name] = item if isinstance(item, str) else json.dumps(item, sort_keys=True)
    size = sum(len(f"{name}{text}".encode(errors="replace")) for name, text in texts.items())
    if len(texts) > MAX_METADATA or size > MAX_METADATA_SIZE:
        raise InvalidCall(
            f"{where}: {len(texts)} entries ({size} bytes) are too many; the limit is "
            f"{MAX_METADATA} entries and {MAX_METADATA_SIZE} bytes: shorten the deployment's tags"
        )
    return texts


def stemcell_tags(where: str, value: object) -> Mapping[str, str]:
    """Return the tags among create_stemcell's options."""
    return metadata("create_stemcell: tags", mapping(where, value).get("tags"))


def _own(resource: str) -> Callable[[str, object], str]:
    """Return a check for a CID of this CPI. It raises the resource's NotFound error."""

    def check(where: str, value: object) -> str:
        if not isinstance(value, str):
            raise wrong(where, f"a {resource} CID", value)
        cid.runtime_of(value, resource)
        return value

    return check


def _any(resource: str) -> Callable[[str, object], str]:
    """Return a check for a CID of any CPI. It raises the resource's NotFound error.

    `../`, spaces, shell and XML characters are in no CPI's CIDs. Here the error says more than the
    "false" of a has_* method would.
    """

    def check(where: str, value: object) -> str:
        if not isinstance(value, str):
            raise wrong(where, f"a {resource} CID", value)
        if re.fullmatch(_HARMLESS, value) is None or ".." in value:
            error = cid.NOT_FOUND.get(resource, CPIError)
            raise error(f"{shown(value)} can be no {resource} CID of any CPI")
        return value

    return check


vm_cid, disk_cid = _own(cid.VM), _own(cid.DISK)
stemcell_cid, snapshot_cid = _own(cid.STEMCELL), _own(cid.SNAPSHOT)
# The has_* methods answer false for CIDs of other CPIs; a runtime names its networks as it likes.
any_vm_cid, any_disk_cid, any_network_cid = _any(cid.VM), _any(cid.DISK), _any(cid.NETWORK)


def optional_vm_cid(where: str, value: object) -> str | None:
    """Check a VM CID or null."""
    return None if value is None else vm_cid(where, value)


def disk_cids(where: str, value: object) -> tuple[str, ...]:
    """Check a list of disk CIDs; null counts as empty."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise wrong(where, "a list of disk CIDs", value)
    return tuple(disk_cid(f"{where}[{index}]", item) for index, item in enumerate(value))
