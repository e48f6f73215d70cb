"""What to do when libvirt cannot be reached."""


def hint(uri: str, message: str, *, local: bool) -> tuple[str, bool]:
    """What to do about a connection that fails, and whether it may pass by itself."""
    if not local:
        return _remote_hint(uri, message)
    if "No such file" in message or "Connection refused" in message:
        return (
            "; is libvirt's daemon running, and its socket there? apt-get install "
            "libvirt-daemon-system, systemctl start libvirtd"
        ), True
    if "Permission denied" in message or "authentication" in message:
        return "; the CPI needs root, or membership of the group libvirt", False
    return "", True


def _remote_hint(uri: str, message: str) -> tuple[str, bool]:
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
