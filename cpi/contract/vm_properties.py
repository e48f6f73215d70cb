"""VM cloud_properties: what a VM type may say, checked."""

from __future__ import annotations

import ipaddress
import re

from cpi.contract import host_mounts
from cpi.contract.values import LARGEST_MIB
from cpi.errors import CloudError
from cpi.model import PortForward, VMProperties
from cpi.text import kind, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

KNOWN = (
    *("cpu", "memory", "ephemeral_disk", "pids", "privileged", "ports", "runtime"),
    *("host_service", "mounts"),
    *("root_disk", "firmware", "machine", "cpu_model"),
)
FIRMWARES = ("bios", "uefi")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")

# The smallest CPU quota of cgroups is 1 ms in each period of 100 ms.
_LEAST_CPU = 0.01
_MOST_CPU = 4096
_MOST_PIDS = 4194304  # the kernel's PID_MAX_LIMIT

_PORT_KEYS = ("host", "container", "protocol", "host_ip")
_PORT = re.compile(
    r"(?:(?P<ip>\[[0-9A-Fa-f:]{2,39}\]|[0-9.]{7,15}):)?"
    r"(?:(?P<host>[0-9]{1,5}):)?(?P<container>[0-9]{1,5})(?:/(?P<protocol>[a-z]{1,8}))?"
)


def parse(given: Mapping[str, object]) -> VMProperties:
    """Return checked properties. Raises CloudError naming the property and what it takes.

    Numbers in quotes are refused: a template that quotes them hides mistakes.
    """
    unknown = [name for name in given if name not in KNOWN]
    if unknown:
        raise _unknown("cloud_properties", unknown, KNOWN)
    return VMProperties(
        cpu=_cpu(given.get("cpu")),
        memory=_integer("memory", given.get("memory"), 32, LARGEST_MIB, "MiB"),
        ephemeral_disk=_integer(
            "ephemeral_disk", given.get("ephemeral_disk"), 16, LARGEST_MIB, "MiB"
        ),
        pids=_integer("pids", given.get("pids"), 16, _MOST_PIDS, "processes and threads"),
        privileged=_flag("privileged", given.get("privileged")),
        ports=_ports(given.get("ports")),
        host_service=_flag("host_service", given.get("host_service")),
        mounts=host_mounts.parse(given.get("mounts")),
        root_disk=_integer("root_disk", given.get("root_disk"), 16, LARGEST_MIB, "MiB"),
        firmware=_firmware(given.get("firmware")),
        machine=_word("machine", given.get("machine")),
        cpu_model=_word("cpu_model", given.get("cpu_model")),
    )


def runtime(given: Mapping[str, object]) -> str | None:
    """Return the runtime that the properties choose, if they do."""
    name = given.get("runtime")
    if name is None or isinstance(name, str):
        return name
    raise _wrong("runtime", "the name of a runtime", name)


def _unknown(where: str, names: list[str], known: tuple[str, ...]) -> CloudError:
    told = ", ".join(shown(name, 60) for name in names)
    return CloudError(f"{where} has unknown keys: {told}; known: {', '.join(known)}")


def _wrong(name: str, wanted: str, value: object) -> CloudError:
    hint = ", without quotes" if isinstance(value, str) and "MiB" in wanted else ""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    got = str(value)[:30] if number else kind(value)
    return CloudError(f"cloud_properties.{name} must be {wanted}{hint}, got {got}")


def _cpu(value: object) -> float | None:
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not _LEAST_CPU <= value <= _MOST_CPU:  # type: ignore[operator]
        raise _wrong("cpu", f"a number of CPUs, {_LEAST_CPU} to {_MOST_CPU}", value)
    return float(value)  # type: ignore[arg-type]


def _integer(name: str, value: object, least: int, most: int, unit: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _wrong(name, f"a whole number of {unit}, {least} to {most}", value)
    return value


def _firmware(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value in FIRMWARES):
        return value
    raise _wrong("firmware", " or ".join(FIRMWARES), value)


def _word(name: str, value: object) -> str | None:
    """A hypervisor's own name for something, which ends up in XML."""
    if value is None or (isinstance(value, str) and _WORD.fullmatch(value)):
        return value
    raise _wrong(name, "a word such as q35 or Skylake-Server", value)


def _flag(name: str, value: object) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _wrong(name, "true or false", value)


def _ports(value: object) -> tuple[PortForward, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _wrong("ports", "a list", value)
    forwards = tuple(_port(f"ports[{index}]", item) for index, item in enumerate(value))
    seen: dict[tuple[int, str], set[str | None]] = {}
    for forward in forwards:
        # No host_ip means all of the host's addresses, so it collides with any of them.
        taken = seen.setdefault((forward.host, forward.protocol), set())
        if taken and (None in taken or forward.host_ip is None or forward.host_ip in taken):
            raise CloudError(
                f"cloud_properties.ports uses {forward.host}/{forward.protocol} of the host twice"
            )
        taken.add(forward.host_ip)
    return forwards


def _port(name: str, value: object) -> PortForward:
    wanted = '"8080", "8080:80", "8080:80/udp" or "127.0.0.1:8080:80/tcp", or an object'
    if isinstance(value, dict):
        return _port_from_object(name, value)
    if isinstance(value, int):
        # YAML reads 22:22 without quotes as a number in base 60, 1342.
        raise CloudError(f"cloud_properties.{name} must be in quotes, such as {wanted}")
    if not isinstance(value, str):
        raise _wrong(name, wanted, value)
    match = _PORT.fullmatch(value)
    if match is None:
        ranges = "; ranges are not supported, list each port" if "-" in value else ""
        raise CloudError(
            f"cloud_properties.{name} must be {wanted}{ranges}; got {shown(value, 60)}"
        )
    container = int(match["container"])
    host = int(match["host"] or container)
    address = (match["ip"] or "").strip("[]")
    return _forward(name, host, container, match["protocol"] or "tcp", address or None)


def _port_from_object(name: str, value: dict[str, object]) -> PortForward:
    unknown = [key for key in value if key not in _PORT_KEYS]
    if unknown:
        raise _unknown(f"cloud_properties.{name}", unknown, _PORT_KEYS)
    container = value.get("container")
    host = value.get("host", container)
    protocol = value.get("protocol", "tcp")
    address = value.get("host_ip")
    for key, port in (("container", container), ("host", host)):
        if not isinstance(port, int) or isinstance(port, bool):
            raise _wrong(f"{name}.{key}", "a port number", port)
    if not isinstance(protocol, str):
        raise _wrong(f"{name}.protocol", "tcp or udp", protocol)
    if address is not None and not isinstance(address, str):
        raise _wrong(f"{name}.host_ip", "an IP address", address)
    return _forward(name, host, container, protocol, address)  # type: ignore[arg-type]


def _forward(
    name: str, host: int, container: int, protocol: str, host_ip: str | None
) -> PortForward:
    for port in (host, container):
        if not 1 <= port <= 65535:
            raise CloudError(f"cloud_properties.{name}: ports are 1 to 65535, got {port}")
    if protocol not in ("tcp", "udp"):
        raise CloudError(
            f"cloud_properties.{name}: protocol is tcp or udp, got {shown(protocol, 30)}"
        )
    if host_ip is not None:
        try:
            host_ip = str(ipaddress.ip_address(host_ip))
        except ValueError:
            raise CloudError(
                f"cloud_properties.{name}: {shown(host_ip, 60)} is no IP address"
            ) from None
    return PortForward(host, container, protocol, host_ip)
