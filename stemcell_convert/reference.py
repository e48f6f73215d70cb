"""Names of images in registries: registry/repository:tag@digest.

Source: distribution's reference grammar. A name without a registry is Docker Hub's.
"""

import re
from dataclasses import dataclass

from stemcell_convert.stemcell_errors import StemcellError

_HUB = "docker.io"
_HOST = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
)
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REST = re.compile(
    rf"(?P<repository>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_MAX_LENGTH = 512  # characters, of the whole name


@dataclass(frozen=True)
class Reference:
    """An image's name; tag and digest may be empty."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.host}/{self.repository}"


def parse(text: str) -> Reference:
    """Read an image's name; written out, the result reads the same. Raises StemcellError."""
    host, slash, rest = text.partition("/")
    # docker's rule for a registry; anything else is the first part of a name on Docker Hub.
    if not slash or not (set(".:[") & set(host) or host == "localhost"):
        host, rest = _HUB, text
    if host == "index.docker.io":
        host = _HUB
    if host == _HUB and "/" not in rest:
        rest = f"library/{rest}"
    match = _REST.fullmatch(rest)
    if match is None or not _HOST.fullmatch(host) or len(f"{host}/{rest}") > _MAX_LENGTH:
        raise StemcellError(
            f"{text[:_MAX_LENGTH]!a} is no image reference; it looks like "
            "ghcr.io/team/stemcell:1.2 or ghcr.io/team/stemcell@sha256:…"
        )
    repository, tag, digest = match.group("repository", "tag", "digest")
    return Reference(host, repository, tag or "", digest or "")
