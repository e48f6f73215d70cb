"""create_vm's networks: what a manifest's subnets become, checked.

The director's `netmask` is the subnet's; its `prefix` is that of the address it reserved, 32 or 128
unless a whole range is delegated to the VM.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from cpi import validate
from cpi.cni import networks as cni_networks
from cpi.errors import CloudError, NotSupported
from cpi.model import Network
from cpi.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpi.contract.foreign_keys import ForeignKeys
    from cpi.log import Log

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_NAME = 128
_ANY = "random"  # the warden CPI's name for any network, as bosh-lite's cloud-configs have it


def parse(
    given: Mapping[str, object], log: Log, foreign: ForeignKeys | None = None
) -> tuple[Network, ...]:
    """Return checked networks in the order given; none at all is fine.

    foreign: what becomes of cloud_properties that are not ours; None leaves them to the runtime.
    Raises CloudError naming the network and what is wrong; NotSupported for vip networks and for
    delegated prefixes.
    """
    networks = tuple(_network(name, value, log) for name, value in given.items())
    if foreign is not None:
        networks = tuple(_with_our_keys(network, foreign) for network in networks)
    addresses = [network.ip for network in networks if network.ip]
    if len(set(addresses)) != len(addresses):
        raise CloudError("networks give the VM the same address twice")
    return networks


def _with_our_keys(network: Network, foreign: ForeignKeys) -> Network:
    where = f"network {shown(network.name)}: cloud_properties"
    known = dict.fromkeys(cni_networks.property_names())
    own = foreign.ours(where, network.cloud_properties, known, CloudError)
    if own.get("name") == _ANY:
        del own["name"]
        foreign.translated.append((where, "name", "network.bridge"))
        foreign.log.info(f"{where}: took name {_ANY!r}, any network, as network.bridge")
    return replace(network, cloud_properties=own)


def _network(name: str, value: object, log: Log) -> Network:
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise CloudError(
            f"network name {shown(name)} must be 1 to {_MAX_NAME} printable characters"
        )
    where = f"network {shown(name)}"
    value = validate.mapping(where, value, CloudError)
    if value.get("nic_group") is not None:
        log.warn(f"{where}: nic_group is not honoured, the network gets an interface of its own")
    type_ = _text(where, value, "type") or "manual"
    if type_ == "vip":
        raise NotSupported(f"{where}: vip networks are not supported; forward ports instead")
    if type_ == "dynamic":
        return _dynamic(where, name, value, log)
    if type_ == "manual":
        return _manual(where, name, value, log)
    raise CloudError(f"{where}: type {shown(type_, 60)} is not known; known: manual, dynamic")


def _dynamic(where: str, name: str, value: Mapping[str, object], log: Log) -> Network:
    # A director that replaces a VM sends what that VM's agent has reported.
    ignored = [key for key in ("ip", "netmask", "gateway") if value.get(key)]
    if ignored:
        log.info(f"{where} is dynamic: ignored {', '.join(ignored)}")
    return Network(
        name=name,
        type="dynamic",
        dns=_dns(where, value),
        default=_strings(where, value, "default"),
        cloud_properties=_cloud_properties(where, value),
    )


def _manual(where: str, name: str, value: Mapping[str, object], log: Log) -> Network:
    text = _text(where, value, "ip")
    if not text:
        raise CloudError(f"{where} is manual, so it needs an ip")
    ip = _address(where, "ip", text)
    if ip.is_unspecified or ip.is_multicast or ip.is_loopback:
        raise CloudError(f"{where}: {ip} is no address for a VM")
    prefix = _prefix(where, value, ip)
    subnet = ipaddress.ip_interface(f"{ip}/{prefix}").network
    gateway = _gateway(where, value, ip)
    if gateway is not None and gateway not in subnet:
        log.warn(f"{where}: gateway {gateway} is outside {subnet}")
    if ip.version == 4 and prefix < 31 and ip in (subnet[0], subnet[-1]):
        raise CloudError(f"{where}: {ip} is the network or broadcast address of {subnet}")
    return Network(
        name=name,
        type="manual",
        ip=str(ip),
        prefix=prefix,
        gateway=None if gateway is None else str(gateway),
        dns=_dns(where, value),
        default=_strings(where, value, "default"),
        cloud_properties=_cloud_properties(where, value),
    )


def _address(where: str, key: str, text: str) -> Address:
    address = validate.ip_address(f"{where}: {key}", text, CloudError)
    if getattr(address, "scope_id", None):
        raise CloudError(f"{where}: {key} {shown(text, 60)} must not name an interface")
    return address


def _gateway(where: str, value: Mapping[str, object], ip: Address) -> Address | None:
    text = _text(where, value, "gateway")
    if not text:
        return None
    gateway = _address(where, "gateway", text)
    if gateway.version != ip.version:
        raise CloudError(f"{where}: gateway {gateway} is of another family than {ip}")
    if gateway == ip:
        raise CloudError(f"{where}: {ip} is both the VM's address and the gateway's")
    return gateway


def _prefix(where: str, value: Mapping[str, object], ip: Address) -> int:
    """Return the length of the subnet's prefix, from the netmask when there is one."""
    length = _reserved_length(where, value.get("prefix"), ip)
    netmask = _text(where, value, "netmask")
    if not netmask:
        if length is None:
            raise CloudError(f"{where} is manual, so it needs a netmask")
        return length
    subnet = _mask_length(where, netmask, ip)
    if length not in (None, ip.max_prefixlen, subnet):
        raise NotSupported(f"{where}: delegating a whole prefix ({ip}/{length}) is not supported")
    return subnet


def _reserved_length(where: str, prefix: object, ip: Address) -> int | None:
    """Return the `prefix` that comes with the address; the director sends a string."""
    if prefix is None or prefix == "":
        return None
    text = str(prefix) if isinstance(prefix, (str, int)) else ""
    short = len(text) <= 3 and text.isascii() and text.isdecimal()
    if not short or not 0 < int(text) <= ip.max_prefixlen:
        raise CloudError(f"{where}: prefix must be a number, 1 to {ip.max_prefixlen}")
    return int(text)


def _mask_length(where: str, text: str, ip: Address) -> int:
    """Return the number of leading ones of a netmask, of either family."""
    mask = _address(where, "netmask", text)
    inverse = int(mask) ^ ((1 << ip.max_prefixlen) - 1)
    if mask.version != ip.version or inverse & (inverse + 1):
        raise CloudError(f"{where}: {mask} is no netmask for {ip}")
    return ip.max_prefixlen - inverse.bit_length()


def _dns(where: str, value: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(_address(where, "dns", text)) for text in _strings(where, value, "dns"))


def _strings(where: str, value: Mapping[str, object], key: str) -> tuple[str, ...]:
    items = value.get(key)
    if items is None:
        return ()
    return validate.list_of(validate.text)(f"{where}: {key}", items, CloudError)


def _text(where: str, value: Mapping[str, object], key: str) -> str:
    """Return a string, "" for null and where there is none."""
    text = value.get(key)
    return "" if text is None else validate.text(f"{where}: {key}", text, CloudError)


def _cloud_properties(where: str, value: Mapping[str, object]) -> Mapping[str, object]:
    properties = value.get("cloud_properties")
    if properties is None:
        return {}
    return validate.mapping(f"{where}: cloud_properties", properties, CloudError)
