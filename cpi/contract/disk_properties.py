"""What manifests say of persistent disks: disk cloud_properties, and a VM's env; checked."""

from __future__ import annotations

from cpi.disks import mount_options
from cpi.disks.disk import DEFAULT_STORE, STORE_NAME
from cpi.disks.filesystems import FILE_SYSTEMS
from cpi.errors import CloudError
from cpi.model import DiskProperties, DiskWishes
from cpi.text import kind, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# `name` comes with the director's dynamic disks (RFC-0053), and is only kept.
KNOWN = ("filesystem", "store", "preallocate", "name")


def parse(given: Mapping[str, object]) -> DiskProperties:
    """Return checked cloud_properties. Raises CloudError naming the property and what it takes."""
    unknown = [shown(name, 60) for name in given if name not in KNOWN]
    if unknown:
        raise CloudError(
            f"disk cloud_properties has unknown keys: {', '.join(unknown)}; "
            f"known: {', '.join(KNOWN)}"
        )
    store = given.get("store")
    if store is not None and not (isinstance(store, str) and STORE_NAME.fullmatch(store)):
        raise _wrong("store", "the name of a disk store", store)
    preallocate = given.get("preallocate")
    if preallocate is not None and not isinstance(preallocate, bool):
        raise _wrong("preallocate", "true or false", preallocate)
    return DiskProperties(
        filesystem=_filesystem("disk cloud_properties.filesystem", given.get("filesystem")),
        store=store or DEFAULT_STORE,
        preallocate=bool(preallocate),
        given=dict(given),
    )


def wishes(env: Mapping[str, object]) -> DiskWishes:
    """Return what a VM's env asks for its disks (bosh-agent, settings.Env). Raises CloudError."""
    options = env.get("persistent_disk_mount_options")
    if options is None:
        options = []
    if not isinstance(options, list) or not all(isinstance(one, str) for one in options):
        raise CloudError("env.persistent_disk_mount_options must be a list of strings")
    words = tuple(word for one in options for word in one.split(",") if word)
    for word in words:
        if not mount_options.is_known(word):
            raise CloudError(
                f"env.persistent_disk_mount_options: {shown(word, 60)} is no mount option that "
                "this CPI passes on"
            )
    return DiskWishes(
        filesystem=_filesystem("env.persistent_disk_fs", env.get("persistent_disk_fs")),
        mount_options=words,
    )


def _filesystem(where: str, value: object) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and value in FILE_SYSTEMS:
        return value
    got = shown(value, 60) if isinstance(value, str) else kind(value)
    raise CloudError(f"{where} must be one of {', '.join(FILE_SYSTEMS)}, got {got}")


def _wrong(name: str, wanted: str, value: object) -> CloudError:
    got = shown(value, 60) if isinstance(value, str) else kind(value)
    return CloudError(f"disk cloud_properties.{name} must be {wanted}, got {got}")
