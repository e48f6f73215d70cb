"""Light stemcells: the image lies in a registry, and the stemcell only names it.

`image_reference` and `digest` in cloud_properties, as the docker and warden CPIs have them.
"""

import hashlib
from dataclasses import replace

from cpi.config.config import Config
from cpi.log import Log
from cpi.model import JsonObject
from runtimes.containerd.stemcells import Stemcells
from stemcell_convert import adapt, oci
from stemcell_convert.manifest import of_properties
from stemcell_convert.oci_image import Image, is_digest
from stemcell_convert.reference import Reference, parse
from stemcell_convert.registry import Registry
from stemcell_convert.registry_client import Access
from stemcell_convert.stemcell_errors import StemcellError

# Labels of containerd's image: what it was pulled as, and the tag that this was, if only a tag was
# given.
LABEL_REFERENCE = "bosh.stemcell.reference"
LABEL_TAG = "bosh.stemcell.tag"


def access(config: Config) -> Access:
    """How the configuration says that registries are reached."""
    return Access(
        plain_http=config.strings("registry.plain_http"),
        ca_file=config.text("registry.ca_file"),
        docker_config=config.text("registry.docker_config"),
    )


def create(stemcells: Stemcells, config: Config, properties: JsonObject, log: Log) -> str:
    """Import the image that a light stemcell names, and return the stemcell's CID.

    A tag alone is resolved once: as long as the stemcell is there, it stays what it was. Raises
    StemcellError, RegistryUnreachable, CloudError.
    """
    named = _reference(properties, config.flag("registry.require_digest"))
    key = hashlib.sha256(str(named).encode()).hexdigest()
    with stemcells.import_folder(key) as folder:
        label = LABEL_REFERENCE if named.digest else LABEL_TAG
        if found := stemcells.known(label, str(named)):
            return found
        registry = Registry(named, access(config), stemcells.means().report)
        labels = {} if named.digest else {LABEL_TAG: str(named)}
        if not named.digest:
            digest, _ = registry.manifest(named)
            log.info(f"{named} is {digest} at present, and stays that for this stemcell")
            named = replace(named, tag="", digest=digest)
        image = registry.pull(named, folder / "layout", oci.host_architecture())
        return _import(stemcells, image, labels | {LABEL_REFERENCE: str(named)}, properties, log)


def _reference(properties: JsonObject, require_digest: bool) -> Reference:
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
    if require_digest and not named.digest:
        raise StemcellError(f"{text} has no digest, and registry.require_digest asks for one")
    # With a digest the tag says nothing any more.
    return replace(named, tag="") if named.digest else replace(named, tag=named.tag or "latest")


def _import(
    stemcells: Stemcells, image: Image, labels: dict[str, str], properties: JsonObject, log: Log
) -> str:
    if image.architecture != oci.host_architecture():
        log.warn(f"the image is for {image.architecture}, this host is {oci.host_architecture()}")
    with stemcells.importing() as work:
        work.image(image, stemcells.means().limit)
        facts = work.look(labels[LABEL_REFERENCE])
        # What the image says of itself is not believed, but for what only it can know.
        ours = image.labels.get(oci.LABEL_ADAPTATION) == adapt.VERSION
        stemcell = oci.stemcell_of(image.labels) if ours else of_properties(properties)
        said = oci.labels(facts, image.digest, stemcell)
        config, manifest = image.config, image.manifest
        if not ours or image.media_type != oci.MANIFEST:
            work.adapt(facts)
            config, manifest = oci.documents(facts, work.layers, said)
        target = work.documents(config, manifest)
        return stemcells.record(work, facts, target, said | labels)
