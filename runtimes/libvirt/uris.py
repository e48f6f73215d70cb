"""libvirt's connection URIs, and what to do when nothing answers at one."""

import re

_PASSWORD = re.compile(r"(//[^/@\s:]*):[^/@\s]*@")


def is_local(uri: str) -> bool:
    """Tell whether a URI is of this machine: no host in it, and no transport to another."""
    scheme, _, rest = uri.partition("://")
    transport = scheme.partition("+")[2]
    return rest.startswith("/") and transport in ("", "unix")


def without_password(text: str) -> str:
    """Return a text without the passwords of the URIs in it."""
    return _PASSWORD.sub(r"\1:<redacted>@", text)


def advice(uri: str, message: str) -> tuple[str, bool]:
    """Return what to do about a failed connection, and whether it may pass by itself."""
    if not is_local(uri):
        return _remote_advice(uri, message)
    if "No such file" in message or "Connection refused" in message:
        return (
            "; is libvirt's daemon running, and its socket there? apt-get install "
            "libvirt-daemon-system, systemctl start libvirtd"
        ), True
    if "Permission denied" in message or "authentication" in message:
        return "; the CPI needs root, or membership of the group libvirt", False
    return "", True


def _remote_advice(uri: str, message: str) -> tuple[str, bool]:
    if "ssh" in uri.partition("://")[0]:
        refused = "Permission denied" in message or "Host key verification" in message
        return "; ssh to that machine has to work for this user without a question", not refused
    if any(word in message for word in ("certificate", "private key", "TLS confirmation")):
        return (
            "; this machine needs a client certificate of the CA that libvirt there trusts, and "
            "that CA's own, in /etc/pki or the URI's `pkipath`, and the server one for the name "
            "in the URI; virt-pki-validate and https://libvirt.org/kbase/tlscerts.html help"
        ), False
    return "; does libvirt listen there (libvirtd-tls.socket, port 16514), and let this in?", True
