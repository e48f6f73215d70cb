"""The kernel's list of connections, by netlink (linux/netfilter/nfnetlink_conntrack.h)."""

import os
import socket
import struct
from collections.abc import Collection, Iterator

_NETLINK_NETFILTER = 12
_GET, _DELETE = 0x101, 0x102  # of the subsystem ctnetlink
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_TUPLE_ORIG, _TUPLE_PROTO, _PROTO_NUM, _PROTO_DST_PORT = 1, 2, 1, 3  # CTA_…
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_SECONDS = 10


def forget_udp(ports: Collection[int]) -> None:
    """Forget the UDP flows to these ports, of both families, so that they are translated anew.

    A flow that does not pause would otherwise keep the translation that it began with. Raises
    OSError.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(_SECONDS)
        flows = [
            (family, original)
            for family, original in _flows(netlink)
            if _is_udp_to(original, ports)
        ]
        for family, original in flows:
            netlink.send(_message(_DELETE, _REQUEST | _ACK, family, original))
            netlink.recv(1 << 16)  # an error means that it has just ended


def _flows(netlink: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Yield the family of each flow, and its original direction as a netlink attribute."""
    netlink.send(_message(_GET, _REQUEST | _DUMP, socket.AF_UNSPEC, b""))
    while True:
        answer = netlink.recv(1 << 20)
        while answer:
            length, type_ = struct.unpack_from("=IH", answer)
            if type_ == _DONE:
                return
            if type_ == _ERROR:
                code = -struct.unpack_from("=i", answer, 16)[0]
                raise OSError(code, os.strerror(code), "conntrack")
            for number, whole in _attributes(answer[20:length]):
                if number == _TUPLE_ORIG:
                    yield answer[16], whole
            answer = answer[(length + 3) & ~3 :]


def _is_udp_to(original: bytes, ports: Collection[int]) -> bool:
    for number, whole in _attributes(original[4:]):
        if number == _TUPLE_PROTO:
            parts = {part: value[4:] for part, value in _attributes(whole[4:])}
            protocol, port = parts.get(_PROTO_NUM, b""), parts.get(_PROTO_DST_PORT, b"")
            return protocol[:1] == bytes([socket.IPPROTO_UDP]) and (
                int.from_bytes(port[:2], "big") in ports
            )
    return False


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes in a message: type, and the whole of it with its header."""
    while len(data) >= 4:
        length, type_ = struct.unpack_from("=HH", data)
        yield type_ & _TYPE_MASK, data[: (length + 3) & ~3]
        data = data[(length + 3) & ~3 :]


def _message(type_: int, flags: int, family: int, attributes: bytes) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + attributes
    return struct.pack("=IHHII", 16 + len(body), type_, flags, 1, 0) + body
