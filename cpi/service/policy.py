"""What the host lets each client of its service ask for: `service.clients` in the configuration.

A client is known by its listener: the main socket, the socket for guests, or TLS, where its name is
its certificate's common name. docs/security.md has the reference. Everything is checked when the
service starts: a misspelt rule would be a hole.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cpi import validate
from cpi.config.config import Config
from cpi.disks.disk import DEFAULT_STORE
from cpi.disks.disk_store import folders_of
from cpi.errors import CPIError, InvalidCall
from cpi.host.iproute import Subnet
from cpi.text import shown
from runtimes import catalog

LOCAL, GUEST = "local", "guest"  # clients of the main socket, and of the one for guests
DEFAULT = "default"  # the policy of clients without their own

_MAX_QUOTA = (1 << 40) - 1
_COUNT = validate.integer(0, _MAX_QUOTA)
QUOTAS = {
    "vms": _COUNT,
    "cpu": validate.number(0, _MAX_QUOTA),
    "memory": _COUNT,
    "disk": _COUNT,
    "stemcells": _COUNT,
}

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
    """What a client may ask for. rule: where the configuration says so, for messages.

    uncontained: VMs on a host that cannot keep root in a VM from being root on the host.
    spoofing: networks on which a VM may send with the addresses of others.
    subnets: None for the private ones that the host has no other route to.
    quotas: by names in QUOTAS; cpu in CPUs, memory and disk in MiB; others are unlimited.
    """

    rule: str
    privileged: bool = False
    uncontained: bool = False
    host_service: bool = False
    spoofing: bool = False
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

    def __init__(self, default: Policy, own: Mapping[str, Policy]) -> None:
        self._default = default
        self._own = dict(own)

    @classmethod
    def of(cls, config: Config) -> Policies:
        """Read the configuration. Raises CPIError naming what is wrong in it."""
        clients = config.mapping("service.clients")
        for name in clients:
            _require_name(name, f"service.clients: {shown(name, 60)}")
        own = {name: _policy(config, name, given) for name, given in clients.items()}
        return cls(own.pop(DEFAULT, _policy(config, DEFAULT, {})), own)

    def of_client(self, name: str) -> Policy:
        """Return what a client may ask for."""
        return self._own.get(name, self._default)


def client_name(name: str) -> str:
    """Check a client's name, which becomes a folder's. Raises CPIError."""
    return _require_name(name, f"the client's name {shown(name, 80)}")


def client_of_certificate(common_names: Sequence[str]) -> str:
    """Return the name of the client whose certificate has these. Raises InvalidCall.

    It must not be the name of a socket's client, nor `default`.
    """
    taken = (LOCAL, GUEST, DEFAULT)
    name = common_names[0] if len(common_names) == 1 else ""
    if _NAME.fullmatch(name) is None or name in taken:
        raise InvalidCall(
            "the client's certificate needs one common name, of 1 to 64 letters, digits and ._@-, "
            f"the first a letter or digit, which is not one of {', '.join(taken)}"
        )
    return name


def _require_name(name: str, what: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise CPIError(
            f"{what} cannot be a client's: 1 to 64 letters, digits and ._@-, the first a letter or "
            "digit"
        )
    return name


def _policy(config: Config, client: str, given: object) -> Policy:
    """Return one client's policy. Raises CPIError."""
    rule = f"service.clients.{client}"
    values: dict[str, Any] = {
        "networks": (config.text("network.bridge"),),
        "runtimes": catalog.configured(config),
    }
    if given is not None:
        values |= validate.fields(rule, given, _checks(config), CPIError)
    return Policy(rule, **values)


def _checks(config: Config) -> dict[str, validate.Check[Any]]:
    """Return every rule that a policy may have, with its check."""
    return {
        "privileged": validate.flag,
        "uncontained": validate.flag,
        "host_service": validate.flag,
        "spoofing": validate.flag,
        "mounts": validate.list_of(_folder),
        "ports": validate.list_of(_ports),
        "networks": validate.list_of(
            validate.matching(_NETWORK.fullmatch, "the name of a bridge or of a CNI network")
        ),
        "subnets": validate.list_of(_subnet),
        "runtimes": validate.list_of(validate.choice(catalog.REGISTRY)),
        "stores": validate.list_of(validate.choice(folders_of(config))),
        "registry_credentials": validate.flag,
        "quotas": _quotas,
    }


def _quotas(where: str, value: object, error: type[CPIError]) -> dict[str, float]:
    return validate.fields(where, value, QUOTAS, error)


def _folder(where: str, value: object, error: type[CPIError]) -> str:
    """Check a folder, and return it as mounts are compared with it: absolute and plain."""
    path = validate.path("..", ".")(where, value, error)
    return "/" + "/".join(part for part in path.split("/") if part)


def _ports(where: str, value: object, error: type[CPIError]) -> range:
    text = str(value) if isinstance(value, (str, int)) else ""
    match = _PORTS.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= 65535:
        raise error(f'{where} must be a port or a range of ports such as "443", "8000-9000"')
    return range(first, last + 1)


def _subnet(where: str, value: object, error: type[CPIError]) -> Subnet:
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise error(f"{where} must be a subnet such as 10.245.0.0/16") from None
