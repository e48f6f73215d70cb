"""Writes light stemcells: tarballs that name an image in a registry."""

import gzip
import io
import os
import tarfile
from pathlib import Path

from stemcell_convert import stemcell_manifest as manifests
from stemcell_convert.stemcell_errors import StemcellError
from stemcell_convert.stemcell_manifest import Manifest


def write(target: Path, stemcell: Manifest, reference: str, digest: str) -> None:
    """Write the light stemcell of an image, with the same bytes every time.

    reference: registry/repository:tag of the image. Raises StemcellError.
    """
    import yaml

    document = manifests.of_light(stemcell, reference, digest)
    text = yaml.safe_dump(document, sort_keys=False, explicit_start=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with (
            fresh.open("xb") as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for name, data in (("image", b""), (manifests.NAME, text.encode())):
                info = tarfile.TarInfo(name)
                info.mode, info.size = 0o644, len(data)
                tar.addfile(info, io.BytesIO(data))
        os.replace(fresh, target)
    except OSError as error:
        raise StemcellError(f"cannot write {target}: {error.strerror}") from None
    finally:
        fresh.unlink(missing_ok=True)
