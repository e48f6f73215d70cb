"""What a VM may send from its port of a bridge: our tables of family bridge, as nft reads them.

Frames with another MAC than the VM's own, or another IP address, never get past the port: the
bridge does not learn from them, and neither other VMs nor the host see them. There is a chain for
each port, which a map finds by the port's name; so a frame passes a handful of rules, however many
VMs there are. Each element of the map has the VM's CID as its comment.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from cpi.cni.nftables import Element

PORTS = "ports"  # the map
_LLDP = 0xE  # 01:80:c2:00:00:0e

# By the names of ports, as the kernel's nft_meta_bridge is optional, which knows those of bridges.
# Frames to 01:80:c2:00:00:0x are for the bridge itself, which learns from them without the hook
# prerouting (br_handle_frame). In the hook input their device is the port; that of all others is
# the bridge. LLDP's have no hook at all, unless the bridge forwards them like any frame.
_TABLE = """\
add table bridge {table}
add map bridge {table} ports {{ type ifname : verdict; }}
add chain bridge {table} arriving {{ type filter hook prerouting priority -300; policy accept; }}
add chain bridge {table} for_bridge {{ type filter hook input priority -300; policy accept; }}
flush chain bridge {table} arriving
flush chain bridge {table} for_bridge
add rule bridge {table} arriving iifname vmap @ports
add rule bridge {table} for_bridge iifname vmap @ports
"""

# The EtherType is compared where it is in a frame without tags, so tagged frames are dropped: Linux
# takes those of VLAN 0 for frames without a tag. 0.0.0.0 and :: are the senders of ARP probes, DHCP
# and duplicate address detection, which a VM does before it has an address. It is no router, so it
# must not advertise itself as one. "@th,64,128" is the target of neighbor solicitations and
# advertisements (RFC 4861, 4.3 and 4.4), which old versions of nft have no name for.
_CHAIN = """\
ether saddr != {mac} drop
ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp saddr ether {mac} \
arp saddr ip {{ {arp} }} accept
ether type ip ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept
ether type ip6 icmpv6 type {{ nd-router-advert, nd-redirect }} drop
ether type ip6 icmpv6 type nd-neighbor-advert @th,64,128 != {{ {targets} }} drop
ether type ip6 ip6 saddr :: icmpv6 type nd-neighbor-solicit @th,64,128 {{ {targets} }} accept
ether type ip6 ip6 saddr :: icmpv6 type {{ nd-router-solicit, mld-listener-report, \
mld2-listener-report }} accept
ether type ip6 ip6 saddr {{ {six} }} accept
"""


@dataclass(frozen=True)
class Port:
    """A port of a bridge: its name, and the MAC of the VM's interface behind it.

    addresses: all that the VM may send from, whichever of its interfaces they are on: it may
    answer by another one.
    """

    name: str
    vm_cid: str
    mac: str
    addresses: Sequence[str]

    @property
    def element(self) -> Element:
        """Return its element of the map."""
        return Element(PORTS, self.name, f"goto {self.chain}")

    @property
    def chain(self) -> str:
        """Return the name of its chain."""
        return chain_of(self.name)

    def rules(self) -> Iterator[str]:
        """Yield the rules of its chain."""
        every = [ip_address(text) for text in self.addresses]
        four = [str(address) for address in every if address.version == 4]
        six = [address for address in every if address.version == 6]
        words = {
            "mac": self.mac,
            "arp": ", ".join(["0.0.0.0", *four]),  # noqa: S104 - of who has no address yet
            "six": ", ".join(map(str, six)),
            "targets": ", ".join(f"{int(address):#x}" for address in six),
        }
        yield from _CHAIN.format(**words).splitlines()
        if four:
            yield f"ether type ip ip saddr {{ {', '.join(four)} }} accept"
        yield "drop"


def chain_of(port: str) -> str:
    """Return the name of a port's chain."""
    return f"from-{port}"


def link_local(mac: str) -> str:
    """Return the address that the kernel derives from a MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(IPv6Address(bytes.fromhex("fe80") + bytes(6) + identifier))


def filtering_all(bridge: str) -> list[str]:
    """Return the command that makes a bridge take LLDP's frames through our rules as well."""
    words = ["ip", "link", "set", "dev", bridge, "type", "bridge"]
    return [*words, "group_fwd_mask", f"{1 << _LLDP:#x}"]


def adding(table: str, ports: Sequence[Port]) -> str:
    """Return the transaction that adds ports, and the table if it is missing."""
    if not ports:
        return ""
    lines = [_TABLE.format(table=table)]
    for port in ports:
        lines.append(f"add chain bridge {table} {port.chain}\n")
        lines.append(f"flush chain bridge {table} {port.chain}\n")
        lines += [f"add rule bridge {table} {port.chain} {rule}\n" for rule in port.rules()]
        key = f'"{port.name}" comment "{port.vm_cid}"'
        lines.append(f"add element bridge {table} {PORTS} {{ {key} : goto {port.chain} }}\n")
    return "".join(lines)


def removing(table: str, names: Sequence[str]) -> str:
    """Return the transaction that removes ports by name, whether they exist or not."""
    if not names:
        return ""
    lines = [_TABLE.format(table=table)]
    for name in names:
        chain, element = chain_of(name), f'{{ "{name}" : goto {chain_of(name)} }}'
        lines += [
            f"add chain bridge {table} {chain}\n",
            f"add element bridge {table} {PORTS} {element}\n",
            f"delete element bridge {table} {PORTS} {element}\n",
            f"flush chain bridge {table} {chain}\n",
            f"delete chain bridge {table} {chain}\n",
        ]
    return "".join(lines)
