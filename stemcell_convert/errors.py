"""What can be wrong with a stemcell."""


class StemcellError(Exception):
    """A stemcell cannot be used; the message names the file and the reason."""


class UnsupportedStemcell(StemcellError):
    """The stemcell is sound as far as was read, but of a format that is not taken."""


class LightStemcell(UnsupportedStemcell):
    """There is nothing in the stemcell but the name of an image in a registry."""


class RegistryUnreachable(StemcellError):
    """A registry did not answer, or a connection to it broke; it may work the next time."""
