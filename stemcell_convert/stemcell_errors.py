"""Errors of stemcells."""


class StemcellError(Exception):
    """A stemcell cannot be used; the message names the file and the reason."""


class UnsupportedStemcell(StemcellError):
    """The stemcell's format is not supported."""


def over_limit(what: str, limit: int) -> StemcellError:
    """Return the error for more than `limit` bytes; `what` ends in "has" or "have"."""
    return StemcellError(f"{what} more than {limit >> 20} MiB, which is the limit (stemcell_limit)")


class LightStemcell(UnsupportedStemcell):
    """The stemcell only names an image in a registry."""


class RegistryUnreachable(StemcellError):
    """A registry did not answer, or a connection to it broke; retryable."""
