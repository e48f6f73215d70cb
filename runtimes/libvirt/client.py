"""libvirt's client: the only file that imports it, with the table of its errors.

Other modules get its objects (virDomain and the like) from here, and call them within
`translated_errors`.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import libvirt

from cpi.errors import CloudError, CPIError, NetworkNotFound, NoDiskSpace, NotSupported, VMNotFound
from cpi.log import Log
from runtimes.libvirt import uris
from runtimes.libvirt.virtualbox import vboxmanage
from runtimes.libvirt.virtualbox.locked import Lock, Locked

BOTH = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG
LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
INACTIVE_XML = libvirt.VIR_DOMAIN_XML_INACTIVE


class AlreadyThere(CloudError):
    """Something else has the name that was to be given."""


_TYPES: dict[int, type[CPIError]] = {
    libvirt.VIR_ERR_NO_DOMAIN: VMNotFound,
    libvirt.VIR_ERR_NO_NETWORK: NetworkNotFound,
    libvirt.VIR_ERR_DOM_EXIST: AlreadyThere,
    libvirt.VIR_ERR_STORAGE_VOL_EXIST: AlreadyThere,
    libvirt.VIR_ERR_NO_SUPPORT: NotSupported,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: NotSupported,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: NotSupported,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: NotSupported,
}
# May pass by itself: the daemon restarts, or another call uses the same resource.
_RETRYABLE = (
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_OPERATION_TIMEOUT,
    libvirt.VIR_ERR_OPERATION_ABORTED,
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
)
_FULL = ("No space left", "Not enough space left", "Disk quota exceeded")
_LOST = (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE, libvirt.VIR_FROM_STREAMS)
_MISSING = (
    libvirt.VIR_ERR_NO_DOMAIN,
    libvirt.VIR_ERR_NO_STORAGE_VOL,
    libvirt.VIR_ERR_NO_STORAGE_POOL,
    libvirt.VIR_ERR_NO_NETWORK,
    libvirt.VIR_ERR_NO_DOMAIN_METADATA,
)


@contextmanager
def translated_errors(doing: str) -> Iterator[None]:
    """Turn libvirt's errors into BOSH's; `doing` says what failed, as in "starting VM x".

    Raises AlreadyThere when a name is taken.
    """
    try:
        yield
    except libvirt.libvirtError as error:
        raise translated(doing, error) from None


def translated(doing: str, error: libvirt.libvirtError) -> CPIError:
    """Return BOSH's error for one of libvirt's."""
    code, domain = error.get_error_code(), error.get_error_domain()
    message = uris.without_password(error.get_error_message() or str(error))
    if any(words in message for words in _FULL):
        return NoDiskSpace(f"{doing}: {message}")
    if "Cannot access storage file" in message and "Permission denied" in message:
        message += (
            "; that user has to pass through every folder above it (chmod o+x), or choose another "
            "state_dir"
        )
    retry = code in _RETRYABLE or (domain in _LOST and code != libvirt.VIR_ERR_NO_SUPPORT)
    type_ = _TYPES.get(code, CloudError)
    if type_ is CloudError and "already exists" in str(error):  # which comes with several codes
        type_ = AlreadyThere
    return type_(f"{doing}: libvirt says: {message}", ok_to_retry=retry and type_ is CloudError)


def is_missing(error: libvirt.libvirtError) -> bool:
    """Tell whether an error says that the thing is not there."""
    return error.get_error_code() in _MISSING


def lookup_or_none(lookup: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a lookup returns, or None when there is no such thing. Raises CPIError."""
    try:
        return lookup(*arguments)
    except libvirt.libvirtError as error:
        if is_missing(error):
            return None
        raise translated(f"looking for {arguments[0]}", error) from None


class Connection:
    """A connection that opens when it is first used, and again after libvirt's daemon restarted."""

    def __init__(
        self,
        uri: str,
        log: Log,
        *,
        events: bool = True,
        lookups: bool = True,
        lock: Lock | None = None,
    ) -> None:
        """events, lookups: as a Profile has them; lock: for a driver without concurrent calls."""
        self.uri = uri
        self._log = log
        self._events = events
        self._lookups = lookups
        self._lock = lock
        self._connection: Any = None
        self._opening = threading.Lock()  # two threads make a VM: volumes and networks at once
        self._happened = threading.Event()  # set by a watched event

    @property
    def shown(self) -> str:
        """The URI, without a password."""
        return uris.without_password(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether libvirt is on this machine."""
        return uris.is_local(self.uri)

    @property
    def raw(self) -> Any:
        """libvirt's own connection. Raises CloudError, naming URI, cause and next step."""
        with self._opening:
            if self._connection is None or not self._connection.isAlive():
                self._connection = self._open()
            return self._connection

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with translated_errors("closing the connection"):
                connection.close()

    def _open(self) -> Any:
        with _STARTING:
            _start_events()
        try:
            opened = libvirt.open(self.uri)
            if not self.is_local:  # whose end is not noticed when the network just goes
                opened.setKeepAlive(_PING_SECONDS, _PINGS)
            return Locked(opened, self._lock) if self._lock else opened
        except libvirt.libvirtError as error:
            if vboxmanage.NOT_READY in str(error):
                raise vboxmanage.refusal(libvirt.getVersion()) from None
            failure = translated(f"connecting to {self.shown}", error)
            advice, passes = uris.advice(self.uri, failure.message)
            raise CloudError(
                failure.message + advice, ok_to_retry=failure.ok_to_retry and passes
            ) from None

    def can_run(self, domain_type: str) -> bool:
        """Tell whether libvirt can run domains of a type."""
        try:
            self.raw.getDomainCapabilities(None, None, None, domain_type)
        except libvirt.libvirtError as error:
            if error.get_error_code() in (
                libvirt.VIR_ERR_INVALID_ARG,
                libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
            ):
                return False
            raise translated(f"asking libvirt about {domain_type}", error) from None
        return True

    # Lookups

    def domain(self, name: str) -> Any:
        """Return the domain of this name, or None."""
        if self._lookups:
            return lookup_or_none(self.raw.lookupByName, name)
        with translated_errors("listing domains"):
            domains = self.raw.listAllDomains()
            return next((domain for domain in domains if domain.name() == name), None)

    def domains(self) -> list[Any]:
        """Return all domains, running or not."""
        with translated_errors("listing domains"):
            domains: list[Any] = self.raw.listAllDomains()
        return domains

    def pool(self, name: str) -> Any:
        """Return the storage pool of this name, or None."""
        return lookup_or_none(self.raw.storagePoolLookupByName, name)

    def network(self, name: str) -> Any:
        """Return the network of this name, or None."""
        return lookup_or_none(self.raw.networkLookupByName, name)

    # Waiting

    def wait(self, done: Callable[[], bool], seconds: float) -> bool:
        """Wait until `done`, for so many seconds at most; tell whether it is done.

        A lost connection ends the wait: it brings no more events.
        """
        end = time.monotonic() + seconds
        while not done():
            left = end - time.monotonic()
            if left <= 0 or self._connection is None or not self._connection.isAlive():
                return False
            # A daemon that is gone sends no event, and some changes have none.
            self._happened.wait(min(_LOOK_AGAIN, left))
            self._happened.clear()
        return True

    @contextmanager
    def watching(self, domain: Any, event: int) -> Iterator[list[Any]]:
        """Collect the details of a domain's events of one type.

        Where the driver has no events, this collects nothing, and `wait` polls.
        """
        seen: list[Any] = []
        if not self._events:
            yield seen
            return

        def remember(_connection: Any, _domain: Any, *details: Any) -> None:
            seen.append(details[:-1])
            self._happened.set()

        with translated_errors("watching for events"):
            watch = self.raw.domainEventRegisterAny(domain, event, remember, None)
        try:
            yield seen
        finally:
            with translated_errors("watching for events"):
                self.raw.domainEventDeregisterAny(watch)


_LOOK_AGAIN = 0.5  # seconds
_PING_SECONDS, _PINGS = 10, 6  # keepalive of another machine

_STARTING = threading.Lock()


@cache
def _start_events() -> None:
    """Start a thread that answers libvirt's daemons for as long as this process lives.

    A daemon that gets no answer to its pings for half a minute closes the connection, and
    converting a stemcell takes longer than that.
    """
    # The default handler writes every error to stderr, also expected ones.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_handle_events, name="libvirt", daemon=True).start()


def _handle_events() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            time.sleep(_LOOK_AGAIN)


IS_RUNNING, IS_OFF, IS_PAUSED = (
    libvirt.VIR_DOMAIN_RUNNING,
    libvirt.VIR_DOMAIN_SHUTOFF,
    libvirt.VIR_DOMAIN_PAUSED,
)
SPARSE_UPLOAD = libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM
REUSE_TARGET = libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
RESIZE_BYTES = libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES
# All that libvirt keeps of a domain.
UNDEFINE_ALL = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
METADATA = libvirt.VIR_DOMAIN_METADATA_ELEMENT
REMOVED = libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED
LIFECYCLE = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
JOB_COMPLETED = libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED


def statistics(connection: Any) -> list[Any]:
    """Return each running domain with its usage. Raises libvirt's error."""
    what = (
        libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
        | libvirt.VIR_DOMAIN_STATS_BALLOON
        | libvirt.VIR_DOMAIN_STATS_BLOCK
    )
    active = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    counted: list[Any] = connection.getAllDomainStats(what, active)
    return counted


def version_of_library() -> int:
    """Return libvirt's version as a number: 9.1.0 is 9001000."""
    return int(libvirt.getVersion())


def destroy(domain: Any) -> None:
    """Turn a domain off, if it runs. Raises libvirt's error."""
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (
            libvirt.VIR_ERR_OPERATION_INVALID,
            libvirt.VIR_ERR_NO_DOMAIN,
        ) and "already powered down" not in str(error):
            raise


def ask_again(domain: Any, device: str) -> None:
    """Ask a domain once more to release a device; it may refuse."""
    with suppress(libvirt.libvirtError):
        domain.detachDeviceFlags(device, LIVE)


def undefine(domain: Any) -> None:
    """Forget a domain, with what libvirt keeps for it. Raises libvirt's error."""
    try:
        domain.undefineFlags(UNDEFINE_ALL)
    except libvirt.libvirtError as error:
        if not is_missing(error):
            raise


def undefine_plain(domain: Any) -> None:
    """Forget a domain for which libvirt keeps nothing more. Raises libvirt's error.

    VirtualBox holds a VM a moment longer than it runs.
    """
    for left in reversed(range(_TRIES)):
        try:
            domain.undefine()
            return
        except libvirt.libvirtError as error:
            if not left or not any(word in str(error) for word in _HELD):
                raise
        time.sleep(_PAUSE)


# VBOX_E_INVALID_OBJECT_STATE, for which newer libvirts use VirtualBox' text.
_HELD = ("rc=80bb0007", "while it is locked")
_TRIES, _PAUSE = 20, 0.5  # seconds


def metadata(domain: Any, namespace: str) -> str:
    """Return an element of a domain's metadata as XML, "" for none. Raises CPIError."""
    return lookup_or_none(domain.metadata, METADATA, namespace, CONFIG) or ""


def set_metadata(domain: Any, element: str, prefix: str, namespace: str) -> None:
    """Replace an element of a domain's metadata, live and persistent. Raises libvirt's error."""
    flags = BOTH if domain.isActive() else CONFIG
    domain.setMetadata(METADATA, element, prefix, namespace, flags)


def abort(stream: Any) -> None:
    """End a stream that failed; the failure is what counts."""
    with suppress(libvirt.libvirtError):
        stream.abort()
