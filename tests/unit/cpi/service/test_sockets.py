"""Sockets of systemd: which one is at an address."""

import socket

from cpi.service import sockets


def test_a_socket_of_systemd_is_used_for_its_own_address_only() -> None:
    """After a change of service.tcp without another `setup`, the service opens its own."""
    for host, other in (("127.0.0.1", "127.0.0.2"), ("::1", "::")):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as listening:
            listening.bind((host, 0))
            port = listening.getsockname()[1]
            assert sockets.is_at(listening, f"[{host}]:{port}")
            assert not sockets.is_at(listening, f"[{other}]:{port}")
            assert not sockets.is_at(listening, f"[{host}]:{port - 1}")
            assert not sockets.is_at(listening, f"localhost:{port}")
