"""BOSH's error types, as the director and the CLI know them.

The director maps the types in KNOWN_RPC_ERRORS (external_cpi.rb) to its classes and shows every
other as "Unknown CPI error"; so it gets the next one that it knows. `ok_to_retry` is acted on for
VMCreationFailed only, but is kept honest everywhere: True means that the same call may succeed
later with nothing changed by an operator.
"""


class CPIError(Exception):
    """A failure that BOSH gets as an error: the base of all others.

    The message names the thing, the cause and, where there is one, the next step. director_type:
    what a director gets instead of `type`, if it does not know that one.
    """

    type = "Bosh::Clouds::CpiError"
    director_type = ""

    def __init__(self, message: str, *, ok_to_retry: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.ok_to_retry = ok_to_retry


class CloudError(CPIError):
    """What runs the VMs failed, or refused the request."""

    type = "Bosh::Clouds::CloudError"


class NotSupported(CPIError):
    """The runtime cannot do this; the director falls back where it has a fallback."""

    type = "Bosh::Clouds::NotSupported"


class NotImplementedInCPI(CPIError):
    """The method is part of the contract but this CPI has no such operation."""

    type = "Bosh::Clouds::NotImplemented"


class InvalidCall(CPIError):
    """The request does not match the contract: method, arity or types."""

    type = "InvalidCall"
    director_type = CPIError.type


class MethodNotKnown(InvalidCall):
    """There is no such method. A director takes this type and message for NotImplemented."""

    director_type = ""

    def __init__(self, shown_name: str) -> None:
        super().__init__(f"Method is not known, got {shown_name}")


class VMNotFound(CPIError):
    """No VM has this CID."""

    type = "Bosh::Clouds::VMNotFound"


class VMCreationFailed(CPIError):
    """create_vm failed; with `ok_to_retry` the director tries again, five times in all."""

    type = "Bosh::Clouds::VMCreationFailed"


class StemcellNotFound(CPIError):
    """No stemcell has this CID."""

    type = "Bosh::Clouds::StemcellNotFound"
    director_type = CloudError.type


class DiskNotFound(CPIError):
    """No persistent disk has this CID."""

    type = "Bosh::Clouds::DiskNotFound"


class DiskNotAttached(CPIError):
    """The disk is not attached to the VM it should be detached from."""

    type = "Bosh::Clouds::DiskNotAttached"


class NoDiskSpace(CPIError):
    """The host has not enough disk space for the request."""

    type = "Bosh::Clouds::NoDiskSpace"


class NetworkNotFound(CPIError):
    """The network that the manifest names does not exist on the host."""

    type = "Bosh::Clouds::NetworkNotFound"


def message_of(error: Exception) -> str:
    """Return an error's message, with its type unless it is the CPI's own."""
    return error.message if isinstance(error, CPIError) else f"{type(error).__name__}: {error}"


class Interrupted(BaseException):
    """A signal asked the process to end. No Exception, so that only undo handlers see it."""


class Elsewhere(BaseException):
    """Another program is to answer. No Exception, so that only the process's end sees it."""

    def __init__(self, program: str, request: bytes) -> None:
        super().__init__(program)
        self.program = program
        self.request = request
