"""The service's sockets: its own, or those that systemd has opened for it."""

from __future__ import annotations

import grp
import os
import socket
import ssl
import stat
from ipaddress import ip_address
from pathlib import Path

from cpi.config.config import Config
from cpi.errors import CPIError

BACKLOG = 512

_FIRST_GIVEN = 3  # sd_listen_fds(3)


def from_systemd() -> list[socket.socket]:
    """Return the sockets of systemd's socket activation, and unset its variables."""
    given = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    os.environ.pop("LISTEN_FDNAMES", None)
    if not given:
        return []
    sockets = [socket.socket(fileno=_FIRST_GIVEN + index) for index in range(count)]
    for listening in sockets:
        os.set_inheritable(listening.fileno(), False)
    return sockets


def main_socket(config: Config) -> Path:
    """Return the path of the service's own unix socket."""
    return Path(config.text("service.socket") or f"{config.text('run_dir')}.sock")


def unix(path: Path, mode: int, group: str = "") -> socket.socket:
    """Listen on a unix socket with this mode and group. Raises CPIError."""
    try:
        _remove_stale(path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            made.bind(str(path))
        finally:
            os.umask(before)
        grant(path, mode, group)
        made.listen(BACKLOG)
    except OSError as error:
        raise CPIError(f"cannot listen on {path}: {error.strerror or error}") from None
    return made


def grant(path: Path, mode: int, group: str = "") -> None:
    """Set the mode and the group of a socket, "" to leave it. Raises CPIError."""
    try:
        if group:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(mode)
    except KeyError:
        raise CPIError(
            f"there is no group {group} on this host (service.socket_group); groupadd -r {group}"
        ) from None
    except OSError as error:
        raise CPIError(f"cannot set the mode of {path}: {error.strerror}") from None


def _remove_stale(path: Path) -> None:
    """Remove a socket without a listener. Raises CPIError for one in use."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise CPIError(f"{path} is there and is no socket; remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise CPIError(f"another service listens on {path}; stop that first")


def tcp(address: str) -> socket.socket:
    """Listen on "host:port". Raises CPIError."""
    host, _, port = address.rpartition(":")
    try:
        infos = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        made = socket.socket(infos[0][0], socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        made.bind(infos[0][4])
        made.listen(BACKLOG)
    except (OSError, ValueError) as error:
        raise CPIError(f"cannot listen on {address} (service.tcp): {error}") from None
    return made


def is_at(listening: socket.socket, address: str) -> bool:
    """Tell whether a TCP socket listens at "host:port", with a numeric host."""
    host, port = listening.getsockname()[:2]
    wanted, _, number = address.rpartition(":")
    try:
        return ip_address(host) == ip_address(wanted.strip("[]")) and str(port) == number
    except ValueError:
        return False


def tls_context(config: Config) -> ssl.SSLContext:
    """Return the context of mutual TLS. Raises CPIError naming the key that is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    load_certificates(context, config)
    return context


def load_certificates(context: ssl.SSLContext, config: Config) -> None:
    """Load the certificates, or reload them. Raises CPIError."""
    keys = ("tls_certificate", "tls_private_key", "tls_client_ca")
    paths = [config.text(f"service.{key}") for key in keys]
    for key, path in zip(keys, paths, strict=True):
        if not path:
            raise CPIError(
                f"service.tcp needs service.{key}: clients and service prove who they are"
            )
        if not os.path.isfile(path):
            raise CPIError(f"service.{key}: there is no file {path}")
    try:
        context.load_cert_chain(paths[0], paths[1])
        context.load_verify_locations(paths[2])
    except OSError as error:  # ssl.SSLError is one
        reason = getattr(error, "reason", None) or error.strerror
        raise CPIError(f"{', '.join(paths)}: they cannot be used for TLS: {reason}") from None
