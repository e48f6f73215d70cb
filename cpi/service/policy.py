"""What the host lets each client of its service ask for: `service.clients` in the configuration.

A client is known by where it comes in: the main socket, the socket for guests, or the common name
of its certificate. docs/security.md has the reference. Everything is checked when the service
starts: what is misspelt here would be a hole.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cpi.config.config import Config, suggestions
from cpi.disks.disk import DEFAULT_STORE
from cpi.disks.disk_store import folders_of
from cpi.errors import CPIError, InvalidCall
from cpi.service.routes import Subnet
from cpi.text import kind, shown
from runtimes import catalog

LOCAL, GUEST = "local", "guest"  # who comes in by the main socket, and by the one for guests
DEFAULT = "default"  # the policy of clients that have none of their own

QUOTAS = ("vms", "cpu", "memory", "disk", "stemcells")

# A client's name becomes a folder's.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")

_UNPRIVILEGED_PORTS = (range(1024, 65536),)
# RFC 1918 and RFC 4193.
PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)


@dataclass(frozen=True)
class Policy:
    """What one client may ask for. rule: where the configuration says so, for messages.

    subnets: None for the private ones that the host has no other route to.
    quotas: by names in QUOTAS; cpu in CPUs, memory and disk in MiB; what is not in it has none.
    """

    rule: str
    privileged: bool = False
    host_service: bool = False
    mounts: tuple[str, ...] = ()
    ports: tuple[range, ...] = _UNPRIVILEGED_PORTS
    networks: tuple[str, ...] = ()
    subnets: tuple[Subnet, ...] | None = None
    runtimes: tuple[str, ...] = ()
    stores: tuple[str, ...] = (DEFAULT_STORE,)
    registry_credentials: bool = False
    quotas: Mapping[str, float] = field(default_factory=dict)


class Policies:
    """The policies of all clients."""

    def __init__(self, usual: Policy, own: Mapping[str, Policy]) -> None:
        self._usual = usual
        self._own = dict(own)

    @classmethod
    def of(cls, config: Config) -> Policies:
        """Read the configuration. Raises CPIError naming what in it is wrong."""
        clients = config.mapping("service.clients")
        for name in clients:
            _require_name(name, f"service.clients: {shown(name, 60)}")
        own = {name: _policy(config, name, given) for name, given in clients.items()}
        return cls(own.pop(DEFAULT, _policy(config, DEFAULT, {})), own)

    def of_client(self, name: str) -> Policy:
        """Return what a client may ask for."""
        return self._own.get(name, self._usual)


def client_name(name: str) -> str:
    """Return a client's name, checked. Raises CPIError for one that cannot be a folder's name."""
    return _require_name(name, f"the client's name {shown(name, 80)}")


def client_of_certificate(common_names: Sequence[str]) -> str:
    """Return the name of the client whose certificate has these. Raises InvalidCall.

    It must not be taken for a socket's client, nor for those without a policy.
    """
    taken = (LOCAL, GUEST, DEFAULT)
    name = common_names[0] if len(common_names) == 1 else ""
    if _NAME.fullmatch(name) is None or name in taken:
        raise InvalidCall(
            "the client's certificate needs one common name, of 1 to 64 letters, digits and ._@-, "
            f"the first a letter or digit, which is not one of {', '.join(taken)}"
        )
    return name


def _require_name(name: str, told: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise CPIError(
            f"{told} cannot be a client's: 1 to 64 letters, digits and ._@-, the first a letter or "
            "digit"
        )
    return name


def _policy(config: Config, client: str, given: object) -> Policy:
    """Return one client's policy. Raises CPIError."""
    rule = f"service.clients.{client}"
    fields = {
        "privileged": _flag,
        "host_service": _flag,
        "mounts": _list_of(_folder),
        "ports": _list_of(_ports),
        "networks": _list_of(_network),
        "subnets": _list_of(_subnet),
        "runtimes": _list_of(_one_of(catalog.REGISTRY, "runtime")),
        "stores": _list_of(_one_of(folders_of(config), "disk store")),
        "registry_credentials": _flag,
        "quotas": _quotas,
    }
    values: dict[str, Any] = {
        "networks": (config.text("network.bridge"),),
        "runtimes": tuple(dict.fromkeys([config.text("runtime"), *config.strings("runtimes")])),
    }
    known = _object(rule, given, fields)
    values |= {name: fields[name](f"{rule}.{name}", value) for name, value in known.items()}
    return Policy(rule, **values)


def _object(where: str, value: object, known: Iterable[str]) -> Mapping[str, Any]:
    """Return an object with known keys; null counts as not set, as templates render it."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CPIError(f"{where} must be an object, got {kind(value)}")
    unknown = [name for name in value if name not in known]
    if unknown:
        raise CPIError(f"{where} has unknown keys: {suggestions(unknown, known)}")
    return {name: item for name, item in value.items() if item is not None}


def _flag(where: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise CPIError(f"{where} must be true or false, got {kind(value)}")
    return value


def _quotas(where: str, value: object) -> dict[str, float]:
    quotas = {}
    for name, most in _object(where, value, QUOTAS).items():
        number = isinstance(most, int) or (name == "cpu" and isinstance(most, float))
        if not number or isinstance(most, bool) or not 0 <= most < 1 << 40:
            wanted = "a number" if name == "cpu" else "a whole number"
            raise CPIError(f"{where}.{name} must be {wanted}, 0 or more, got {kind(most)}")
        quotas[name] = most
    return quotas


def _list_of(check: Callable[[str, object], Any]) -> Callable[[str, object], tuple[Any, ...]]:
    def checked(where: str, value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise CPIError(f"{where} must be a list, got {kind(value)}")
        return tuple(check(f"{where}[{at}]", item) for at, item in enumerate(value))

    return checked


def _one_of(known: Mapping[str, object], what: str) -> Callable[[str, object], str]:
    def checked(where: str, value: object) -> str:
        if not isinstance(value, str) or value not in known:
            got = suggestions([value], known) if isinstance(value, str) else kind(value)
            raise CPIError(f"{where} must be a {what} ({', '.join(known)}), got {got}")
        return value

    return checked


def _folder(where: str, value: object) -> str:
    """A folder as mounts are compared with it: absolute and plain."""
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        raise CPIError(f"{where} must be an absolute path, got {kind(value)}")
    plain = "/" + "/".join(part for part in value.split("/") if part)
    if any(part in (".", "..") for part in plain.split("/")):
        raise CPIError(f"{where} must be a path without . and ..")
    return plain


def _ports(where: str, value: object) -> range:
    text = str(value) if isinstance(value, (str, int)) else ""
    match = _PORTS.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= 65535:
        raise CPIError(f'{where} must be a port or a range of ports such as "443", "8000-9000"')
    return range(first, last + 1)


def _network(where: str, value: object) -> str:
    if not isinstance(value, str) or _NETWORK.fullmatch(value) is None:
        raise CPIError(f"{where} must be the name of a bridge or of a CNI network")
    return value


def _subnet(where: str, value: object) -> Subnet:
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise CPIError(f"{where} must be a subnet such as 10.245.0.0/16") from None
