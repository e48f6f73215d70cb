"""containerd's leases, content, snapshots and image records.

Nothing here knows of stemcells or VMs.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import BinaryIO

from google.protobuf.empty_pb2 import Empty  # noqa: TID253 - loaded with the client only

from cpi.errors import CPIError
from cpi.host import locks
from cpi.log import Log
from runtimes.containerd.api import (
    content_pb2,
    diff_pb2,
    images_pb2,
    leases_pb2,
    snapshots_pb2,
    types_pb2,
)
from runtimes.containerd.client import AlreadyExists, Client, NotFound

# Bytes of a message: larger ones gain nothing, and at most eight are in flight.
CHUNK = 1 << 20
AHEAD = 8

# Long enough for the largest stemcell; a killed process' lease expires afterwards.
LEASE_SECONDS = 3600
_LABEL_LOCKS = "bosh.run_dir"


class ImageStore:
    """containerd's content, snapshots and images, for one snapshotter."""

    def __init__(self, client: Client, snapshotter: str, run_dir: str, log: Log) -> None:
        """run_dir: the folder of the locks."""
        self.client = client
        self.snapshotter = snapshotter
        self._run_dir = run_dir
        self._log = log

    def with_snapshotter(self, snapshotter: str) -> "ImageStore":
        """Return the same containerd with another snapshotter."""
        return ImageStore(self.client, snapshotter, self._run_dir, self._log)

    # Leases

    @contextmanager
    def lease(self) -> Iterator[str]:
        """Hold a lease; when it ends, containerd collects what nothing else refers to.

        After a failure that is done before this returns. A lock of its name is held as long, so
        that the lease of a killed process is known.
        """
        expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + LEASE_SECONDS))
        name = f"bosh-cpi-{os.urandom(8).hex()}"
        failed = True
        with locks.hold(self._run_dir, name, log=self._log):
            try:  # from here on: a signal may come in the middle of making it
                self._create_lease(name, expiry)
                yield name
                failed = False
            finally:
                self.delete_lease(name, sync=failed)

    def _create_lease(self, name: str, expiry: str) -> None:
        labels = {"containerd.io/gc.expire": expiry, _LABEL_LOCKS: self._run_dir}
        self.client.call(
            "leases.v1.Leases/Create",
            leases_pb2.CreateRequest(id=name, labels=labels),
            leases_pb2.CreateResponse,
            doing="creating a lease",
        )

    def delete_lease(self, name: str, *, sync: bool) -> None:
        """Delete a lease, if it exists; sync: return when all that only it held is gone."""
        self.client.call_or_none(
            "leases.v1.Leases/Delete",
            leases_pb2.DeleteRequest(id=name, sync=sync),
            Empty,
            doing=f"deleting the lease {name}",
        )

    def leases(self) -> list[str]:
        """Return the names of the leases with locks in our run_dir."""
        leases = self.client.call(
            "leases.v1.Leases/List",
            leases_pb2.ListRequest(),
            leases_pb2.ListResponse,
            doing="listing leases",
        ).leases
        return [lease.id for lease in leases if lease.labels.get(_LABEL_LOCKS) == self._run_dir]

    # Content

    def write_content(
        self,
        stream: BinaryIO,
        size: int,
        digest: str,
        *,
        lease: str,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Store `size` bytes under their digest, which containerd checks; idempotent.

        Raises CloudError when the bytes are not what the digest says.
        """
        # Unique to this lease: partial content of a killed or another call must not be reused.
        ref = f"{lease}-{digest}"
        request = partial(content_pb2.WriteContentRequest, ref=ref, total=size, expected=digest)

        def requests() -> Iterator[content_pb2.WriteContentRequest]:
            offset = 0
            while data := stream.read(CHUNK):
                yield request(action=content_pb2.WRITE, offset=offset, data=data)
                offset += len(data)
            yield request(action=content_pb2.COMMIT, offset=offset, labels=dict(labels or {}))

        try:
            self.client.exchange(
                "content.v1.Content/Write",
                requests(),
                content_pb2.WriteContentResponse,
                doing=f"storing content {digest}",
                lease=lease,
                ahead=AHEAD,
            )
        except AlreadyExists:
            return
        except BaseException:
            with suppress(CPIError):  # a containerd that has stopped fails this too
                self.client.call_or_none(
                    "content.v1.Content/Abort",
                    content_pb2.AbortRequest(ref=ref),
                    Empty,
                    doing=f"giving up {ref}",
                )
            raise

    # Snapshots

    def prepare(
        self, key: str, parent: str, *, lease: str | None = None
    ) -> Sequence[types_pb2.Mount]:
        """Make a writable snapshot and return its mounts. Raises AlreadyExists, NotFound."""
        return self.client.call(
            "snapshots.v1.Snapshots/Prepare",
            snapshots_pb2.PrepareSnapshotRequest(
                snapshotter=self.snapshotter, key=key, parent=parent
            ),
            snapshots_pb2.PrepareSnapshotResponse,
            doing=f"preparing the snapshot {key}",
            lease=lease,
        ).mounts

    def mounts(self, key: str) -> Sequence[types_pb2.Mount]:
        """Return the mounts of a writable snapshot. Raises NotFound."""
        return self.client.call(
            "snapshots.v1.Snapshots/Mounts",
            snapshots_pb2.MountsRequest(snapshotter=self.snapshotter, key=key),
            snapshots_pb2.MountsResponse,
            doing=f"reading the mounts of the snapshot {key}",
        ).mounts

    def commit(self, name: str, key: str, *, lease: str) -> None:
        """Commit a writable snapshot as `name`; if that exists, drop ours."""
        try:
            self.client.call(
                "snapshots.v1.Snapshots/Commit",
                snapshots_pb2.CommitSnapshotRequest(
                    snapshotter=self.snapshotter, name=name, key=key
                ),
                Empty,
                doing=f"committing the snapshot {name}",
                lease=lease,
            )
        except AlreadyExists:
            self.keep_snapshot(name, lease=lease)
            self.remove_snapshot(key)

    def keep_snapshot(self, name: str, *, lease: str) -> None:
        """Put an existing snapshot under a lease. Raises NotFound."""
        resource = leases_pb2.Resource(id=name, type=f"snapshots/{self.snapshotter}")
        self.client.call(
            "leases.v1.Leases/AddResource",
            leases_pb2.AddResourceRequest(id=lease, resource=resource),
            Empty,
            doing=f"keeping the snapshot {name}",
        )

    def has_snapshot(self, name: str) -> bool:
        """Tell whether a snapshot is there."""
        snapshot = self.client.call_or_none(
            "snapshots.v1.Snapshots/Stat",
            snapshots_pb2.StatSnapshotRequest(snapshotter=self.snapshotter, key=name),
            snapshots_pb2.StatSnapshotResponse,
            doing=f"looking for the snapshot {name}",
        )
        return snapshot is not None

    def usage(self, key: str) -> int:
        """Return how many bytes a snapshot takes, without those below it. Raises NotFound."""
        return self.client.call(
            "snapshots.v1.Snapshots/Usage",
            snapshots_pb2.UsageRequest(snapshotter=self.snapshotter, key=key),
            snapshots_pb2.UsageResponse,
            doing=f"measuring the snapshot {key}",
        ).size

    def snapshots(self) -> list[str]:
        """Return the names of all snapshots."""
        replies = self.client.listing(
            "snapshots.v1.Snapshots/List",
            snapshots_pb2.ListSnapshotsRequest(snapshotter=self.snapshotter),
            snapshots_pb2.ListSnapshotsResponse,
            doing="listing snapshots",
        )
        return [info.name for reply in replies for info in reply.info]

    def remove_snapshot(self, key: str) -> None:
        """Remove a snapshot, if it exists."""
        self.client.call_or_none(
            "snapshots.v1.Snapshots/Remove",
            snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key),
            Empty,
            doing=f"removing the snapshot {key}",
        )

    def apply(
        self, media_type: str, digest: str, size: int, mounts: Sequence[types_pb2.Mount]
    ) -> str:
        """Unpack a layer's blob onto mounts and return its diff ID.

        Raises CloudError when the layer is damaged.
        """
        return self.client.call_however_long(
            "diff.v1.Diff/Apply",
            diff_pb2.ApplyRequest(
                diff=types_pb2.Descriptor(media_type=media_type, digest=digest, size=size),
                mounts=mounts,
            ),
            diff_pb2.ApplyResponse,
            doing=f"unpacking the layer {digest}",
            timeout=LEASE_SECONDS,
        ).applied.digest

    # Images

    def get_image(self, name: str) -> images_pb2.Image | None:
        """Return an image record, or None."""
        reply = self.client.call_or_none(
            "images.v1.Images/Get",
            images_pb2.GetImageRequest(name=name),
            images_pb2.GetImageResponse,
            doing=f"looking for the image {name}",
        )
        return None if reply is None else reply.image

    def find_images(self, *filters: str) -> Sequence[images_pb2.Image]:
        """Return the image records that match one of containerd's filters."""
        return self.client.call(
            "images.v1.Images/List",
            images_pb2.ListImagesRequest(filters=filters),
            images_pb2.ListImagesResponse,
            doing="listing images",
        ).images

    def create_image(
        self, name: str, target: types_pb2.Descriptor, labels: Mapping[str, str], *, lease: str
    ) -> None:
        """Record an image; idempotent."""
        image = images_pb2.Image(name=name, target=target, labels=dict(labels))
        with suppress(AlreadyExists):
            self.client.call(
                "images.v1.Images/Create",
                images_pb2.CreateImageRequest(image=image),
                images_pb2.CreateImageResponse,
                doing=f"recording the image {name}",
                lease=lease,
            )

    def delete_image(self, name: str) -> None:
        """Delete an image, if it exists; return when all that only it held is gone."""
        with suppress(NotFound):
            self.client.call_however_long(
                "images.v1.Images/Delete",
                images_pb2.DeleteImageRequest(name=name, sync=True),
                Empty,
                doing=f"deleting the image {name}",
                timeout=LEASE_SECONDS,
            )
