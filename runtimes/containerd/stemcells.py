"""Stemcells as images of containerd: look-up and deletion; imports.py creates them."""

from dataclasses import dataclass

from cpi import cid
from cpi.errors import StemcellNotFound
from runtimes.containerd.image_store import ImageStore
from stemcell_convert import oci

# The image's name in containerd. `ctr run` takes it, and it is a valid reference for a push.
IMAGE_PREFIX = "bosh.local/stemcell/"
LABEL_SNAPSHOT = "bosh.stemcell.snapshot"
LABEL_COMMAND = "bosh.stemcell.command"
_CID_DIGITS = 40  # hex digits of the manifest's digest in a CID: enough to be unique


@dataclass(frozen=True)
class Stemcell:
    """An imported stemcell, as create_vm needs it."""

    image: str
    snapshot: str
    init: str
    command: tuple[str, ...]
    settings: str


class Stemcells:
    """The stemcells of one containerd namespace."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    def find(self, stemcell_cid: str) -> Stemcell:
        """Return an imported stemcell. Raises StemcellNotFound."""
        image = self._store.get_image(image_name(stemcell_cid))
        if image is None or LABEL_SNAPSHOT not in image.labels:
            raise StemcellNotFound(
                f"the stemcell {stemcell_cid} is not in containerd; upload it again "
                "(bosh upload-stemcell --fix)"
            )
        return Stemcell(
            image=image.name,
            snapshot=image.labels[LABEL_SNAPSHOT],
            init=image.labels[oci.LABEL_INIT],
            command=tuple(image.labels[LABEL_COMMAND].split(" ")),
            settings=image.labels[oci.LABEL_SETTINGS],
        )

    def delete(self, stemcell_cid: str) -> None:
        """Delete a stemcell, if it exists; its VMs are unaffected."""
        self._store.delete_image(image_name(stemcell_cid))


def image_name(stemcell_cid: str) -> str:
    """Return the name of a stemcell's image."""
    return f"{IMAGE_PREFIX}{stemcell_cid.rsplit('-', 1)[1]}:latest"


def cid_of(runtime: str, digest: str) -> str:
    """Return the CID of the stemcell whose image has this digest."""
    return cid.new(runtime, cid.STEMCELL, digest.partition(":")[2][:_CID_DIGITS])
