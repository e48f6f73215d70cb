"""A libvirt that is on another machine, as far as the CPI can tell.

Both are on one private host. The CPI has a mount namespace of its own, in which libvirt's pool and
sockets are not there; what it keeps itself is where libvirt does not see it. So they share nothing
but the network.
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testing.hosts.daemon import Daemon
from testing.hosts.private_host import PrivateHost
from testing.hosts.private_libvirt import Libvirt
from tests.support.libvirt.kvm_machine import KvmMachine

DAYS = "2"  # that certificates are good for

# Says its process id when the mounts are done, and keeps them.
_MOUNTS = """\
set -e
mount --bind "$1" "$2"
mount -t tmpfs -o mode=755 tmpfs "$3"
mount -t tmpfs -o mode=755 tmpfs /run/libvirt
echo $$
exec sleep infinity
"""


class Certificates:
    """A CA with keys and certificates of a server and of clients, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o755)
        self._authority(folder)
        self._signed("server", folder, "subjectAltName=IP:127.0.0.1")
        self.client = self.client_of(folder, "client")

    def client_of(self, authority: Path, name: str) -> Path:
        """Make a client's folder, as libvirt's `pkipath` wants it, with a certificate."""
        folder = self.folder / name
        folder.mkdir(mode=0o755)
        self._signed("client", authority, "extendedKeyUsage=clientAuth", folder)
        (folder / "cacert.pem").write_bytes((self.folder / "cacert.pem").read_bytes())
        return folder

    def stranger(self) -> Path:
        """A client's folder with a certificate that the server's CA has not signed."""
        other = self.folder / "other"
        other.mkdir(mode=0o755)
        self._authority(other)
        return self.client_of(other, "stranger")

    def settings(self) -> str:
        """Lines of libvirtd.conf."""
        return "\n".join(
            [
                "listen_tls = 1",
                'listen_addr = "127.0.0.1"',
                f'ca_file = "{self.folder}/cacert.pem"',
                f'cert_file = "{self.folder}/servercert.pem"',
                f'key_file = "{self.folder}/serverkey.pem"',
                # A client that does not answer is cut off sooner than the usual half a minute.
                "keepalive_interval = 2",
                "keepalive_count = 3",
                "",
            ]
        )

    def _authority(self, folder: Path) -> None:
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", DAYS, "-subj", "/CN=tests", "-keyout", str(folder / "cakey.pem"),
            "-out", str(folder / "cacert.pem"))  # fmt: skip

    def _signed(
        self, name: str, authority: Path, extension: str, folder: Path | None = None
    ) -> None:
        folder = folder or self.folder
        key, request = folder / f"{name}key.pem", folder / f"{name}.csr"
        extensions = folder / f"{name}.ext"
        extensions.write_text(extension + "\n")
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request))  # fmt: skip
        _openssl("x509", "-req", "-days", DAYS, "-in", str(request), "-CAcreateserial",
            "-CA", str(authority / "cacert.pem"), "-CAkey", str(authority / "cakey.pem"),
            "-extfile", str(extensions), "-out", str(folder / f"{name}cert.pem"))  # fmt: skip


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


class RemoteMachine(KvmMachine):
    """A private host on which the CPI's libvirt seems to be on another machine."""

    def __init__(self, libvirt: Libvirt, certificates: Certificates) -> None:
        self.certificates = certificates
        self.pool = libvirt.host.folder / "pool"
        super().__init__(libvirt)

    def uri(self, client: Path | None = None) -> str:
        """The URI for a client's folder of certificates."""
        return f"qemu+tls://127.0.0.1/system?pkipath={client or self.certificates.client}"

    def configure(self, kvm: dict[str, Any] | None = None, **changes: Any) -> Path:
        there = {"uri": self.uri(), "pool_path": str(self.pool)}
        return super().configure({**there, **(kvm or {})}, **changes)

    def volumes(self) -> list[str]:
        return sorted(path.name for path in self.pool.iterdir()) if self.pool.is_dir() else []

    def metadata_of(self, cid: str) -> dict[str, str]:
        if "-disk-" in cid:  # its facts are beside it, where libvirt is
            facts = (self.pool / f"{cid}.facts").read_text()
            return dict(json.loads(facts.rstrip("\0"))["metadata"])
        return super().metadata_of(cid)

    def kept_by_cpi(self) -> list[str]:
        """The files that the CPI has on its own machine."""
        return sorted(str(path) for path in own_state(self.host).rglob("*") if path.is_file())

    def leftovers(self) -> dict[str, Sequence[str]]:
        """Everything that a VM or disk consists of, there and here."""
        kept = (".stemcell", ".json")
        qemu = self.host.run("pgrep", "--list-full", "qemu-system", check=False).stdout
        return {
            "domains": self.domains(),
            "volumes": [name for name in self.volumes() if not name.endswith(kept)],
            "files": self.kept_by_cpi(),
            "folders": sorted(str(path) for path in own_state(self.host).glob("vms/*")),
            "locks": [path.name for path in self.host.folder.glob("run/locks/*")],
            "qemu": qemu.splitlines(),
        }


def own_state(host: PrivateHost) -> Path:
    """Where the CPI's state is, seen from outside of its namespace."""
    return host.folder / "state-of-the-cpi"


@contextmanager
def remote_machine() -> Iterator[RemoteMachine]:
    """A private host with libvirt, and the CPI as if on another machine."""
    with PrivateHost() as host:
        certificates = Certificates(host.folder / "pki")
        with (
            Libvirt(host, certificates.settings(), ("--listen",)) as libvirt,
            _apart(host, host.folder / "pool"),
        ):
            yield RemoteMachine(libvirt, certificates)


@contextmanager
def _apart(host: PrivateHost, pool: Path) -> Iterator[None]:
    """Run the CPI where it does not see libvirt's files, nor libvirt its."""
    for folder in (own_state(host), host.state, pool):
        folder.mkdir(mode=0o711)
    mounts = [str(own_state(host)), str(host.state), str(pool)]
    keeper = Daemon(
        host,
        *("unshare", "--mount", "sh", "-c", _MOUNTS, "sh", *mounts),
        log=host.folder / "apart.log",
    )
    try:
        host.around = ("nsenter", "--target", keeper.first_line(), "--mount", "--")
        yield
    finally:
        host.around = ()
        keeper.stop()
