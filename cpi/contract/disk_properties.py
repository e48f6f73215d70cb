"""Checks what manifests say of persistent disks: disk cloud_properties, and a VM's env."""

from __future__ import annotations

from cpi import validate
from cpi.disks import mount_options
from cpi.disks.disk import STORE_NAME
from cpi.disks.filesystems import FILE_SYSTEMS
from cpi.errors import CloudError
from cpi.model import DiskProperties, DiskWishes
from cpi.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpi.contract.foreign_keys import ForeignKeys
    from cpi.errors import CPIError

_OPTIONS = "env.persistent_disk_mount_options"


def _filesystem(where: str, value: object, error: type[CPIError]) -> str | None:
    if value is None or value == "":
        return None
    return validate.choice(FILE_SYSTEMS)(where, value, error)


KEYS = {
    "filesystem": _filesystem,
    "store": validate.matching(STORE_NAME.fullmatch, "the name of a disk store"),
    "preallocate": validate.flag,
    # Comes with the director's dynamic disks (RFC-0053), and is only kept.
    "name": lambda where, value, error: value,
}


def parse(given: Mapping[str, object], foreign: ForeignKeys | None = None) -> DiskProperties:
    """Return checked cloud_properties. Raises CloudError naming the property and what it takes.

    foreign: what becomes of keys that are not ours; None refuses them.
    """
    where = "disk cloud_properties"
    own = given if foreign is None else foreign.ours(where, given, KEYS, CloudError)
    checked = validate.fields(where, own, KEYS, CloudError)
    checked.pop("name", None)
    return DiskProperties(**checked, given=dict(given))


def wishes(env: Mapping[str, object]) -> DiskWishes:
    """Return what a VM's env asks for its disks (bosh-agent, settings.Env). Raises CloudError."""
    options = env.get("persistent_disk_mount_options")
    texts = validate.list_of(validate.text)(
        _OPTIONS, [] if options is None else options, CloudError
    )
    words = tuple(word for text in texts for word in text.split(",") if word)
    for word in words:
        if not mount_options.is_known(word):
            raise CloudError(
                f"{_OPTIONS}: {shown(word, 60)} is no mount option that this CPI passes on"
            )
    return DiskWishes(
        _filesystem("env.persistent_disk_fs", env.get("persistent_disk_fs"), CloudError), words
    )
