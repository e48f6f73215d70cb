"""stemcell.MF, a stemcell's manifest.

Source: stemcell_packager.rb of the stemcell builder; the director's update_stemcell.rb has the
required keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stemcell_convert.stemcell_errors import StemcellError

NAME = "stemcell.MF"
LIMIT = 64 << 10  # bytes; YAML takes a time that grows with the square of some documents
_MAX_LENGTH = 256  # characters of one value; containerd's labels end at 4096 with their keys
_LIGHT_FORMATS = ("docker-light", "warden-light")


@dataclass(frozen=True)
class Manifest:
    """A stemcell's name, version and the like; empty where it does not say."""

    name: str = ""
    version: str = ""
    operating_system: str = ""
    api_version: str = ""
    formats: tuple[str, ...] = ()
    cloud_properties: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> str:
        """A light stemcell's image, as registry/repository:tag@digest; "" for another stemcell."""
        reference = _text(self.cloud_properties.get("image_reference"))
        digest = _text(self.cloud_properties.get("digest"))
        return f"{reference}@{digest}" if reference and digest else reference


def parse(document: bytes, source: str) -> Manifest:
    """Read a stemcell.MF; `source` is what an error calls it. Raises StemcellError."""
    import yaml  # no other call needs it

    if len(document) > LIMIT:
        raise StemcellError(f"{source} is no stemcell's manifest: it has more than 64 KiB")

    class Loader(yaml.SafeLoader):
        """Without YAML's merges, a few of which make a document of any size."""

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            pass

    try:
        content = yaml.load(document, Loader)  # noqa: S506 (it is a safe one)
    # yaml raises all of these for invalid values.
    except (
        *(yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError),
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise StemcellError(f"{source} is not YAML: {reason}") from None
    if not isinstance(content, dict):
        raise StemcellError(f"{source} is not a stemcell's manifest: it is no mapping")
    properties = content.get("cloud_properties")
    formats = content.get("stemcell_formats")
    return Manifest(
        name=_text(content.get("name")),
        version=_text(content.get("version")),
        operating_system=_text(content.get("operating_system")),
        api_version=_text(content.get("api_version")),
        formats=tuple(map(_text, formats)) if isinstance(formats, list) else (),
        cloud_properties=properties if isinstance(properties, dict) else {},
    )


def of_properties(properties: Mapping[str, Any]) -> Manifest:
    """Return a manifest from cloud_properties, for an `image` without its own."""
    return Manifest(
        name=_text(properties.get("name")),
        version=_text(properties.get("version")),
        cloud_properties=properties,
    )


def of_light(manifest: Manifest, reference: str, digest: str) -> dict[str, Any]:
    """Return the stemcell.MF, as a document, of a light stemcell for an image in a registry.

    The keys of cloud_properties are the docker and warden CPIs' own. Raises StemcellError when the
    image does not say which stemcell it is, which the director has to know.
    """
    if not (manifest.name and manifest.version and manifest.operating_system):
        raise StemcellError(
            "the image does not say which stemcell it is (name, version, operating system), so "
            "there can be no light stemcell of it; convert it from the stemcell's tarball"
        )
    return {
        "name": manifest.name,
        "version": manifest.version,
        "bosh_protocol": "1",
        "api_version": _api_version(manifest.api_version),
        "sha1": "da39a3ee5e6b4b0d3255bfef95601890afd80709",  # of the `image`, which is empty
        "operating_system": manifest.operating_system,
        "stemcell_formats": list(_LIGHT_FORMATS),
        "cloud_properties": {
            "name": manifest.name,
            "version": manifest.version,
            "image_reference": reference,
            "digest": digest,
        },
    }


def _api_version(text: str) -> int:
    """Parse a number from an image's label, which may have any text."""
    return int(text) if text.isdecimal() and len(text) < _MAX_LENGTH else 3


def _text(value: object) -> str:
    """Return a scalar of YAML as text that fits into a label, else ""."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    # Python refuses to write out a number that is far longer.
    if isinstance(value, int) and abs(value) >= 10**_MAX_LENGTH:
        return ""
    text = str(value)
    return text if len(text) <= _MAX_LENGTH and text.isprintable() else ""
