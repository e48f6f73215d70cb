"""Checks of single arguments of methods, on top of cpi.validate.

Every check takes `where` (what the value is, for the message) and the value, and returns the value
or raises InvalidCall. Messages show a value's type; the value itself only where it can be no
secret: numbers and CIDs, never strings of other kinds.
"""

from __future__ import annotations

import json
import re

from cpi import cid, validate
from cpi.errors import CPIError, InvalidCall
from cpi.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpi.model import DiskProperties

# 1 PiB: larger sizes are mistakes, and would overflow the 64-bit byte counts below us.
LARGEST_MIB = 2**30

# What CIDs of other CPIs are made of; anything else is an attack or an accident.
_HARMLESS = re.compile(r"[A-Za-z0-9._:/-]{1,255}")

_MEBIBYTES = validate.integer(1, LARGEST_MIB, "MiB")


def wrong(where: str, wanted: str, value: object) -> InvalidCall:
    """Return the error for a value of the wrong type or size."""
    return validate.wrong(where, wanted, value, InvalidCall)


def string(where: str, value: object) -> str:
    """A string that is not empty, has no control characters and at most 4096 characters."""
    text = validate.text(where, value, InvalidCall)
    if not text or len(text) > 4096 or not text.isprintable():
        raise InvalidCall(f"{where} must be 1 to 4096 printable characters")
    return text


def path(where: str, value: object) -> str:
    """An absolute path."""
    return validate.path()(where, string(where, value), InvalidCall)


def mapping(where: str, value: object) -> Mapping[str, object]:
    """An object; null counts as an empty one, which is what Go makes of a nil map."""
    return {} if value is None else validate.mapping(where, value, InvalidCall)


def mebibytes(where: str, value: object) -> int:
    """A size in MiB."""
    return _MEBIBYTES(where, value, InvalidCall)


def metadata(where: str, value: object) -> Mapping[str, str]:
    """An object whose values become strings: JSON for all that are none, "" for null."""
    texts = {}
    for name, item in mapping(where, value).items():
        if item is None:
            item = ""
        texts[name] = item if isinstance(item, str) else json.dumps(item, sort_keys=True)
    return texts


def stemcell_tags(where: str, value: object) -> Mapping[str, str]:
    """Return the tags among create_stemcell's options."""
    return metadata("create_stemcell: tags", mapping(where, value).get("tags"))


def disk_properties(where: str, value: object) -> DiskProperties:
    """Return a persistent disk's cloud_properties. Raises CloudError for what is wrong in them."""
    from cpi.contract import disk_properties as parser  # which only some methods pay for

    return parser.parse(mapping(where, value))


def vm_cid(where: str, value: object) -> str:
    """A VM CID of this CPI. Raises VMNotFound for any other string."""
    return _cid(where, value, cid.VM)


def disk_cid(where: str, value: object) -> str:
    """A disk CID of this CPI. Raises DiskNotFound for any other string."""
    return _cid(where, value, cid.DISK)


def stemcell_cid(where: str, value: object) -> str:
    """A stemcell CID of this CPI. Raises StemcellNotFound for any other string."""
    return _cid(where, value, cid.STEMCELL)


def snapshot_cid(where: str, value: object) -> str:
    """A snapshot CID of this CPI. Raises CPIError for any other string."""
    return _cid(where, value, cid.SNAPSHOT)


def optional_vm_cid(where: str, value: object) -> str | None:
    """A VM CID or null."""
    return None if value is None else vm_cid(where, value)


def disk_cids(where: str, value: object) -> tuple[str, ...]:
    """A list of disk CIDs; null counts as empty."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise wrong(where, "a list of disk CIDs", value)
    return tuple(disk_cid(f"{where}[{index}]", item) for index, item in enumerate(value))


def any_vm_cid(where: str, value: object) -> str:
    """Any CPI's VM CID: has_vm answers false for those of others. Raises VMNotFound, see _any."""
    return _any(where, value, cid.VM)


def any_disk_cid(where: str, value: object) -> str:
    """Any CPI's disk CID: has_disk answers false for those of others. Raises DiskNotFound."""
    return _any(where, value, cid.DISK)


def any_network_cid(where: str, value: object) -> str:
    """A managed network's CID, as its runtime made it. Raises NetworkNotFound."""
    return _any(where, value, cid.NETWORK)


def _cid(where: str, value: object, resource: str) -> str:
    if not isinstance(value, str):
        raise wrong(where, f"a {resource} CID", value)
    cid.runtime_of(value, resource)
    return value


def _any(where: str, value: object, resource: str) -> str:
    """Return what may be a CID of some CPI.

    `../`, spaces, shell and XML characters are in no CPI's CIDs. For these the kind's NotFound
    error tells more than "false" would: whoever made the call sees what was wrong with it.
    """
    if not isinstance(value, str):
        raise wrong(where, f"a {resource} CID", value)
    if _HARMLESS.fullmatch(value) is None or ".." in value:
        not_found = cid.NOT_FOUND.get(resource, CPIError)
        raise not_found(f"{shown(value)} can be no {resource} CID of any CPI")
    return value
