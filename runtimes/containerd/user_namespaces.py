"""Whether this host can run VMs in user namespaces, found by trying."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cpi.errors import CPIError
from cpi.host import id_maps, syscalls
from cpi.host.layout import Layout

if TYPE_CHECKING:
    from runtimes.containerd.image_store import ImageStore

_ANY_ID = 1 << 30  # nothing is stored under it
_SNAPSHOTTER = "overlayfs"


def problem(layout: Layout, store: "ImageStore") -> str:
    """Return why VMs cannot have user namespaces here, or "".

    It is tried once after a restart of the host, and again while it fails. Raises CPIError when
    containerd does not answer.
    """
    if store.snapshotter != _SNAPSHOTTER:
        return f"containerd's snapshotter is {store.snapshotter} instead of {_SNAPSHOTTER}"
    folder = layout.user_namespaces
    works = folder / ".works"
    if works.exists():
        return ""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with store.lease() as lease:
        key = f"{lease}-probe"
        [mount] = store.prepare(key, "", lease=lease)
        try:
            options = dict(option.partition("=")[::2] for option in mount.options)
            source = Path(options.get("upperdir", mount.source))
            syscalls.in_private_mounts(lambda: _try(folder, source))
        except OSError as error:
            return (
                f"the kernel ({os.uname().release}) cannot mount {error.filename} with other user "
                f"ids: {error.strerror}"
            )
        except CPIError as error:
            return error.message
        finally:
            store.remove_snapshot(key)
    works.touch(0o600)
    return ""


def _try(folder: Path, source: Path) -> None:
    """Mount an overlay over an id-mapped folder, all where no other process sees it.

    Raises OSError, CloudError.
    """
    syscalls.mount("tmpfs", folder, "tmpfs")
    user, network = folder / "user", folder / "network"
    id_maps.pin(user, network, _ANY_ID)
    layers, upper, work, merged = (folder / name for name in ("lower", "upper", "work", "merged"))
    for path in (layers, upper, work, merged):
        path.mkdir()
    id_maps.mount_read_only(source, layers, user)
    options = f"lowerdir={layers},upperdir={upper},workdir={work}"
    syscalls.mount("overlay", merged, "overlay", data=options)
