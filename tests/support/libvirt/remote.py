"""A libvirt that appears to the CPI to be on another machine.

Both are on one private host. The CPI has a separate mount namespace without libvirt's pool and
sockets, and its own state is not visible to libvirt. So they share only the network.
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

# Prints its process id after the mounts, and keeps them.
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
        """Return a client's folder with a certificate of another CA."""
        other = self.folder / "other"
        other.mkdir(mode=0o755)
        self._authority(other)
        return self.client_of(other, "stranger")

    def settings(self) -> str:
        """Return lines of libvirtd.conf."""
        return "\n".join(
            [
                "listen_tls = 1",
                'listen_addr = "127.0.0.1"',
                f'ca_file = "{self.folder}/cacert.pem"',
                f'cert_file = "{self.folder}/servercert.pem"',
                f'key_file = "{self.folder}/serverkey.pem"',
                # A client that does not answer is disconnected sooner than by default (30 s).
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
    """A private host whose libvirt appears to the CPI to be on another machine."""

    def __init__(self, libvirt: Libvirt, certificates: Certificates) -> None:
        self.certificates = certificates
        self.pool = libvirt.host.folder / "pool"
        super().__init__(libvirt)

    def uri(self, client: Path | None = None) -> str:
        """Return the URI for a client's folder of certificates."""
        return f"qemu+tls://127.0.0.1/system?pkipath={client or self.certificates.client}"

    def configure(self, kvm: dict[str, Any] | None = None, **changes: Any) -> Path:
        there = {"uri": self.uri(), "pool_path": str(self.pool)}
        return super().configure({**there, **(kvm or {})}, **changes)

    def volumes(self) -> list[str]:
        return sorted(path.name for path in self.pool.iterdir()) if self.pool.is_dir() else []

    def metadata_of(self, cid: str) -> dict[str, str]:
        if "-disk-" in cid:  # its facts are in the pool
            document = (self.pool / f"{cid}.facts").read_bytes().rstrip(b"\0")
            return dict(json.loads(document)["metadata"])
        return super().metadata_of(cid)

    def kept_by_cpi(self) -> list[str]:
        """Return the CPI's files on its own machine, but for those of who holds stemcells."""
        own = own_state(self.host)
        files = (path for path in own.rglob("*") if path.is_file())
        return sorted(str(path) for path in files if own / "stemcells" not in path.parents)

    def leftovers(self) -> dict[str, Sequence[str]]:
        """Return all parts of VMs and disks, of libvirt and of the CPI."""
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
    """Return the path of the CPI's state, seen from outside of its namespace."""
    return host.folder / "state-of-the-cpi"


@contextmanager
def remote_machine() -> Iterator[RemoteMachine]:
    """Yield a private host with libvirt, and the CPI as if on another machine."""
    with PrivateHost() as host:
        certificates = Certificates(host.folder / "pki")
        with (
            Libvirt(host, certificates.settings(), ("--listen",)) as libvirt,
            _apart(host, host.folder / "pool"),
        ):
            yield RemoteMachine(libvirt, certificates)


@contextmanager
def _apart(host: PrivateHost, pool: Path) -> Iterator[None]:
    """Run the CPI in a namespace that shares no files with libvirt."""
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
