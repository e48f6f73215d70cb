"""Light stemcells, which name an image in a registry.

`image_reference` and `digest` in cloud_properties, as the docker and warden CPIs have them.
"""

from dataclasses import replace
from pathlib import Path

from cpi.config.config import Config
from cpi.model import JsonObject
from runtimes.registry_access import access
from stemcell_convert import oci
from stemcell_convert.oci_image import Image, is_digest
from stemcell_convert.reference import Reference, parse
from stemcell_convert.registry import Registry
from stemcell_convert.report import Report
from stemcell_convert.stemcell_errors import StemcellError

# Labels of containerd's image: its reference with the digest, and the tag, if only that was given.
LABEL_REFERENCE = "bosh.stemcell.reference"
LABEL_TAG = "bosh.stemcell.tag"


def pull(
    named: Reference, folder: Path, config: Config, report: Report
) -> tuple[Image, dict[str, str]]:
    """Fetch an image into an empty folder; return it and its labels for containerd.

    A tag is resolved once: the stemcell keeps that image. Raises StemcellError,
    RegistryUnreachable.
    """
    registry = Registry(named, access(config), report)
    labels = {} if named.digest else {LABEL_TAG: str(named)}
    if not named.digest:
        digest, _ = registry.manifest(named)
        report.say(f"{named} is {digest} at present, and stays that for this stemcell")
        named = replace(named, tag="", digest=digest)
    image = registry.pull(named, folder, oci.host_architecture())
    return image, labels | {LABEL_REFERENCE: str(named)}


def require_access(named: Reference, config: Config, report: Report) -> None:
    """Raise StemcellError if the registry does not give an image with these credentials."""
    Registry(named, access(config), report).require(named)


def reference(properties: JsonObject, config: Config) -> Reference:
    """Return the image that a light stemcell names. Raises StemcellError."""
    text, digest = properties.get("image_reference"), properties.get("digest")
    if not isinstance(text, str) or not text:
        raise StemcellError(
            "the stemcell's image is empty, as in a light stemcell, and its cloud_properties have "
            "no image_reference"
        )
    named = parse(text)
    if digest is not None:
        if not isinstance(digest, str) or not is_digest(digest):
            raise StemcellError(f"the digest of {text} is {digest!a}; it should be sha256:<hex>")
        if named.digest not in ("", digest):
            raise StemcellError(f"{text} and the stemcell's digest {digest} are not the same")
        named = replace(named, digest=digest)
    if not named.digest and config.flag("registry.require_digest"):
        raise StemcellError(f"{text} has no digest, and registry.require_digest asks for one")
    # With a digest the tag has no meaning.
    return replace(named, tag="") if named.digest else replace(named, tag=named.tag or "latest")
