"""A CA for tests, with certificates for a service and its clients."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


class CA:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o755)
        self._folder = folder
        self._issued = 0
        self.certificate, self._key = folder / "ca.crt", folder / "ca.key"
        _openssl("req", "-x509", *_CURVE, "-days", "2", "-subj", "/CN=tests", "-keyout",
            str(self._key), "-out", str(self.certificate))  # fmt: skip

    def server(self, address: str) -> Pair:
        """Return a service's certificate for an IP address."""
        return self._issue("server", f"subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth")

    def client(self, name: str, *, days: int = 2) -> Pair:
        """Return a client's certificate; with negative `days` it has expired."""
        return self._issue(name, "extendedKeyUsage=clientAuth", days)

    def settings(self, client: Pair, *, as_text: bool = False) -> Mapping[str, str]:
        """Return the section `tls` of a client's configuration."""
        files = {
            "ca": self.certificate,
            "certificate": client.certificate,
            "private_key": client.key,
        }
        return {key: file.read_text() if as_text else str(file) for key, file in files.items()}

    def _issue(self, name: str, extensions: str, days: int = 2) -> Pair:
        self._issued += 1
        stem = self._folder / f"issued-{self._issued}"
        made = Pair(stem.with_suffix(".crt"), stem.with_suffix(".key"))
        request, wanted = stem.with_suffix(".csr"), stem.with_suffix(".ext")
        subject = "/CN=" + name.replace("/", "\\/")
        wanted.write_text(f"{extensions}\n")
        _openssl("req", *_CURVE, "-subj", subject, "-keyout", str(made.key),
            "-out", str(request))  # fmt: skip
        _openssl("x509", "-req", "-days", str(days), "-in", str(request), "-CAcreateserial",
            "-CA", str(self.certificate), "-CAkey", str(self._key), "-extfile", str(wanted),
            "-out", str(made.certificate))  # fmt: skip
        made.key.chmod(0o644)  # the client that reads it is not root
        return made


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)
