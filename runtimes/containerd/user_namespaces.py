"""Whether this host can run VMs in user namespaces, found by trying."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cpi.config.config import Config
from cpi.errors import CPIError, NotSupported
from cpi.host import id_maps, syscalls
from cpi.host.layout import Layout
from cpi.log import Log
from cpi.model import VMSpec
from runtimes.containerd.daemon import Containerd

if TYPE_CHECKING:
    from runtimes.containerd.image_store import ImageStore

_ANY_ID = 1 << 30  # nothing is stored under it
_SNAPSHOTTER = "overlayfs"


def ids_for(spec: VMSpec, config: Config, layout: Layout, containerd: Containerd, log: Log) -> str:
    """Return the user ids from which a VM gets a range of its own, "" for none.

    Raises NotSupported when it must have one and the host cannot make it.
    """
    mode = config.text("containerd.user_namespaces")
    if mode == "off" or spec.properties.privileged:
        return ""
    reason = problem(layout, containerd.store)
    if not reason:
        return config.text("containerd.user_namespace_ids")
    if mode == "required":
        raise NotSupported(
            "VMs must run in user namespaces (containerd.user_namespaces, or for a client of the "
            f"host's service its rule `uncontained`), but {reason}"
        )
    log.warn(f"{spec.cid} gets no user namespace, so its root is the host's: {reason}")
    return ""


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
