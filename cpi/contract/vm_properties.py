"""Checks VM cloud_properties."""

from __future__ import annotations

import re
from itertools import chain, islice

from cpi import validate
from cpi.contract import foreign_keys
from cpi.contract.values import MAX_MIB
from cpi.errors import CloudError
from cpi.model import HostMount, PortForward, VMProperties
from cpi.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cpi.contract.foreign_keys import ForeignKeys
    from cpi.errors import CPIError

_MAX_CPUS = 4096
_MIN_CPUS = 0.01  # the smallest quota of cgroups is 1 ms in each period of 100 ms
_MAX_PIDS = 4194304  # the kernel's PID_MAX_LIMIT
_MAX_MOUNTS = 32
_MAX_MOUNT_PATH = 1024  # characters

# A hypervisor's own name for something, which ends up in XML.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")

_PORT = re.compile(
    r"(?:(?P<host_ip>\[[0-9A-Fa-f:]{2,39}\]|[0-9.]{7,15}):)?"
    r"(?:(?P<host>[0-9]{1,5}(?:-[0-9]{1,5})?):)?(?P<container>[0-9]{1,5}(?:-[0-9]{1,5})?)"
    r"(?:/(?P<protocol>[a-z]{1,8}))?"
)
_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_PORT_EXAMPLES = (
    '"8080", "8080:80", "8080:80/udp", "127.0.0.1:8080:80/tcp" or "8000-8099", or an object'
)
_MAX_PORTS = 4096  # of one VM; each is an entry in the host's firewall

# Paths of a VM that no mount may hide: neither these nor anything below.
_RESERVED_TREES = (
    *("/proc", "/sys", "/dev", "/etc", "/run", "/var/run", "/warden-cpi-dev"),
    *("/var/vcap/bosh", "/var/vcap/bosh-cpi", "/var/vcap/bosh_ssh", "/var/vcap/data"),
    *("/var/vcap/store", "/var/vcap/store_migration_target", "/var/vcap/instance"),
    *("/var/vcap/jobs", "/var/vcap/packages", "/var/vcap/monit", "/var/vcap/sys"),
    *("/var/vcap/micro", "/var/vcap/micro_bosh"),
)
# These must not be hidden either, but there is room below.
_RESERVED_FOLDERS = (
    *("/bin", "/boot", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/root", "/sbin"),
    *("/usr", "/usr/bin", "/usr/lib", "/usr/sbin", "/var/lib", "/var/log"),
)


def parse(given: Mapping[str, object], foreign: ForeignKeys | None = None) -> VMProperties:
    """Return checked properties. Raises CloudError naming the property and what it takes.

    foreign: what becomes of keys that are not ours; None refuses them.
    """
    where = "cloud_properties"
    if foreign is not None:
        given = foreign.ours(where, given, KEYS, CloudError, foreign_keys.OF_VMS)
    checked = validate.fields(where, given, KEYS, CloudError)
    checked.pop("runtime", None)
    return VMProperties(**checked)


def runtime(given: Mapping[str, object]) -> str | None:
    """Return the runtime that the properties choose, if they do."""
    name = given.get("runtime")
    return None if name is None else validate.text("cloud_properties.runtime", name, CloudError)


def _ports(where: str, value: object, error: type[CPIError]) -> tuple[PortForward, ...]:
    lists = validate.list_of(_port, _MAX_PORTS)(where, value, error)
    # Not one more is made than is refused: a few characters may stand for 65,535.
    forwards = tuple(islice(chain.from_iterable(lists), _MAX_PORTS + 1))
    if len(forwards) > _MAX_PORTS:
        raise error(f"{where} has more than {_MAX_PORTS} ports, which is the limit")
    seen: dict[tuple[int, str], set[str | None]] = {}
    for forward in forwards:
        # No host_ip means all of the host's addresses, so it collides with any of them.
        taken = seen.setdefault((forward.host, forward.protocol), set())
        if taken and (None in taken or forward.host_ip is None or forward.host_ip in taken):
            raise error(f"{where} uses {forward.host}/{forward.protocol} of the host twice")
        taken.add(forward.host_ip)
    return forwards


def _port(where: str, value: object, error: type[CPIError]) -> Iterator[PortForward]:
    """Check an item; return what it publishes, several ports for a range."""
    if isinstance(value, int):
        # YAML reads 22:22 without quotes as a number in base 60, 1342.
        raise error(f"{where} must be in quotes, such as {_PORT_EXAMPLES}")
    if isinstance(value, str):
        value = _port_from_text(where, value, error)
    if not isinstance(value, dict):
        raise validate.wrong(where, _PORT_EXAMPLES, value, error)
    port = validate.fields(where, value, _PORT_KEYS, error)
    own = {side: port.pop(side) for side in ("host", "container") if side in port}
    if not own:
        raise error(f"{where} needs host or container: a port, or a range of ports")
    host, container = (own.get(side) or next(iter(own.values())) for side in ("host", "container"))
    if len(host) != len(container):
        raise error(f"{where}: {len(host)} ports of the host for {len(container)} of the VM")
    return (PortForward(a, b, **port) for a, b in zip(host, container, strict=True))


def _port_from_text(where: str, text: str, error: type[CPIError]) -> dict[str, object]:
    match = _PORT.fullmatch(text)
    if match is None:
        raise error(f"{where} must be {_PORT_EXAMPLES}; got {shown(text, 60)}")
    ports = {
        side: match[side] if "-" in match[side] else int(match[side])
        for side in ("host", "container")
        if match[side]
    }
    address = (match["host_ip"] or "").strip("[]")
    return {**ports, "protocol": match["protocol"], "host_ip": address or None}


def _port_numbers(where: str, value: object, error: type[CPIError]) -> range:
    """Check a port, or a range of ports such as "1024-1123"."""
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        port = _PORT_NUMBER(where, value, error)
        return range(port, port + 1)
    first, last = (_PORT_NUMBER(where, int(text), error) for text in match.groups())
    if first > last:
        raise error(f"{where} must be a range of ports, the lower one first, got {shown(match[0])}")
    return range(first, last + 1)


def _host_ip(where: str, value: object, error: type[CPIError]) -> str:
    return str(validate.ip_address(where, value, error))


def _mounts(where: str, value: object, error: type[CPIError]) -> tuple[HostMount, ...]:
    mounts = validate.list_of(_mount, _MAX_MOUNTS)(where, value, error)
    for index, mount in enumerate(mounts):
        for other in mounts[:index]:
            if _is_below(mount.vm, other.vm) or _is_below(other.vm, mount.vm):
                raise error(
                    f"{where} has {shown(mount.vm)} and {shown(other.vm)}, and one would hide the "
                    "other"
                )
    return mounts


def _mount(where: str, value: object, error: type[CPIError]) -> HostMount:
    mount = HostMount(**validate.fields(where, value, _MOUNT_KEYS, error, required=("host", "vm")))
    for reserved in (*_RESERVED_TREES, *_RESERVED_FOLDERS):
        below = reserved in _RESERVED_TREES and _is_below(mount.vm, reserved)
        if below or _is_below(reserved, mount.vm):
            raise error(f"{where}.vm: {shown(mount.vm)} would hide {reserved}, which the VM needs")
    return mount


def _is_below(path: str, folder: str) -> bool:
    """Tell whether a path is a folder or below it."""
    return path == folder or path.startswith(f"{folder}/")


_MIB = validate.integer(16, MAX_MIB, "MiB")
_MOUNT_PATH = validate.path("..", ".", "", max_length=_MAX_MOUNT_PATH)
_HYPERVISOR_WORD = validate.matching(_WORD.fullmatch, "a word such as q35 or Skylake-Server")
_PORT_NUMBER = validate.integer(1, 65535)

_PORT_KEYS = {
    "host": _port_numbers,
    "container": _port_numbers,
    "protocol": validate.choice(("tcp", "udp")),
    "host_ip": _host_ip,
}
_MOUNT_KEYS = {"host": _MOUNT_PATH, "vm": _MOUNT_PATH, "read_only": validate.flag}

# Every property that a VM's cloud_properties may have, with its check.
KEYS = {
    "cpu": validate.number(_MIN_CPUS, _MAX_CPUS, "CPUs"),
    "memory": validate.integer(32, MAX_MIB, "MiB"),
    "ephemeral_disk": _MIB,
    "pids": validate.integer(16, _MAX_PIDS, "processes and threads"),
    "privileged": validate.flag,
    "ports": _ports,
    "runtime": validate.text,
    "host_service": validate.flag,
    "mounts": _mounts,
    "root_disk": _MIB,
    "firmware": validate.choice(("bios", "uefi")),
    "machine": _HYPERVISOR_WORD,
    "cpu_model": _HYPERVISOR_WORD,
}
