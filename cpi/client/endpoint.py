"""Where the host's service is, and a connection to it: a unix socket, or TCP with mutual TLS.

Part of the thin client: standard library only, and `ssl` only where it is used.
"""

from __future__ import annotations

import os
import re
import socket

from cpi.errors import CPIError
from cpi.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

_CONNECT_SECONDS = 10
_SILENT_SECONDS = 30  # then the kernel asks whether the other side is still there
_HTTPS = re.compile(r"https://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]{1,253}):([0-9]{1,5})/?")
_TLS_KEYS = ("ca", "certificate", "private_key")

_START = (
    "start it on its host (systemctl start bosh-containerd-cpi, or bosh-cpi serve), or leave "
    "`endpoint` empty to work without it, as root on the host"
)


class Endpoint:
    """One service. `text` is how the configuration names it; a unix socket has a path, else host
    and port are set."""

    def __init__(self, text: str, tls: Mapping[str, object]) -> None:
        """Check what the configuration says. Raises CPIError naming the key."""
        self.text = text
        self.path = self.host = ""
        self.port = 0
        self._tls: dict[str, str] = {}
        match = _HTTPS.fullmatch(text)
        if text.startswith("unix:///") and "\0" not in text:
            self.path = text.removeprefix("unix://")
        elif match and 1 <= int(match[2]) <= 65535:
            self.host, self.port = match[1].strip("[]"), int(match[2])
            self._tls = self._checked(tls)
        else:
            raise CPIError(
                f"endpoint must be unix:///path/of/a.sock or https://host:port, got {shown(text)}"
            )

    def _checked(self, tls: Mapping[str, object]) -> dict[str, str]:
        checked = {}
        for key in _TLS_KEYS:
            value = tls.get(key)
            if not isinstance(value, str) or not value.strip():
                raise CPIError(
                    f"endpoint {self.text} needs tls.{key}, as PEM text or an absolute path: "
                    "the service wants to know its clients, and they it"
                )
            checked[key] = value
        return checked

    def connect(self) -> socket.socket:
        """Connect. Raises CPIError, retryable where the service may still start."""
        return self._unix() if self.path else self._tcp()

    def _unix(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self.path)
        except PermissionError:
            raise self.error(
                f"user {os.getuid()} may not use the socket; join the group that owns it "
                "(service.socket_group on the host)"
            ) from None
        except OSError as error:
            reason = "there is no such socket" if error.errno == 2 else error.strerror
            raise self.error(f"it does not answer ({reason}); {_START}", retry=True) from None
        return connection

    def _tcp(self) -> socket.socket:
        context = self._context()
        try:
            plain = socket.create_connection((self.host, self.port), _CONNECT_SECONDS)
        except OSError as error:
            reason = error.strerror or str(error)
            raise self.error(f"it does not answer ({reason}); {_START}", retry=True) from None
        try:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_SECONDS)
            secured = context.wrap_socket(plain, server_hostname=self.host)
            secured.settimeout(None)
        except OSError as error:
            plain.close()
            raise self.failed(error) from None
        return secured

    def _context(self) -> ssl.SSLContext:
        """Load certificates and key. Raises CPIError naming what cannot be used."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        key = "ca"
        try:
            _with_file(self._tls["ca"], lambda path: context.load_verify_locations(path))
            key = "certificate and tls.private_key"
            _with_file(
                self._tls["certificate"],
                lambda certificate: _with_file(
                    self._tls["private_key"],
                    lambda private: context.load_cert_chain(certificate, private, _no_password),
                ),
            )
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise CPIError(f"tls.{key} cannot be used: {reason}") from None
        return context

    def failed(self, error: OSError) -> CPIError:
        """Return BOSH's error for an error of a connection."""
        import ssl

        if isinstance(error, ssl.SSLCertVerificationError):
            return self.error(
                f"its certificate is not to be trusted ({error.verify_message}); compare tls.ca "
                "with what signed the service's certificate, and its names with the endpoint"
            )
        if isinstance(error, ssl.SSLError) and error.reason and "ALERT" in error.reason:
            alert = error.reason.replace("_", " ").lower()
            return self.error(
                f"it does not take our certificate (it says: {alert}); tls.certificate must be "
                "valid and signed by the CA in the service's service.tls_client_ca"
            )
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        return self.error(f"the connection broke: {reason}", retry=True)

    def error(self, problem: str, *, retry: bool = False) -> CPIError:
        """Return an error that names the endpoint."""
        return CPIError(f"the CPI's service at {self.text}: {problem}", ok_to_retry=retry)


def _no_password() -> str:
    raise ValueError("the private key has a password; BOSH's CPI can take none")


def _with_file(pem_or_path: str, use: Callable[[str], object]) -> None:
    """Give `use` a path: OpenSSL reads only files. On Linux, text is not written to disk."""
    if not pem_or_path.lstrip().startswith("-----"):
        use(pem_or_path)
    elif hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("tls")
        try:
            os.write(descriptor, pem_or_path.encode())
            use(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    else:  # a Mac
        import tempfile

        with tempfile.NamedTemporaryFile("w") as file:  # 0600
            file.write(pem_or_path)
            file.flush()
            use(file.name)
