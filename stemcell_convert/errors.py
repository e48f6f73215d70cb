"""What can be wrong with a stemcell."""


class StemcellError(Exception):
    """A stemcell cannot be used; the message names the file and the reason."""


class UnsupportedStemcell(StemcellError):
    """The stemcell is sound as far as was read, but of a format that is not taken."""
