"""What can be wrong with a stemcell."""


class StemcellError(Exception):
    """A stemcell cannot be used; the message names the file and the reason."""


class UnsupportedStemcell(StemcellError):
    """The stemcell is sound as far as was read, but of a format that is not taken."""


def over_limit(what: str, limit: int) -> StemcellError:
    """The error for more than `limit` bytes; `what` ends in "has" or "have"."""
    return StemcellError(f"{what} more than {limit >> 20} MiB, which is the limit (stemcell_limit)")


class LightStemcell(UnsupportedStemcell):
    """There is nothing in the stemcell but the name of an image in a registry."""


class RegistryUnreachable(StemcellError):
    """A registry did not answer, or a connection to it broke; it may work the next time."""
