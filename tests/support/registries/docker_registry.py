"""Real registries on a private host: Debian's docker-registry in containers of its Docker."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from testing.hosts.daemon import Daemon
from testing.hosts.private_docker import Docker
from testing.patience import PATIENCE
from tests.support.registries.token_server import ISSUER

# Testcontainers' cleanup is an image of Docker Hub; here all ends with the private host.
testcontainers_config.ryuk_disabled = True

USERNAME = "bosh"
PASSWORD = "s3cr:t with ünïcode"  # noqa: S105 - of a registry that lives for a test


@dataclass
class Registry:
    """A registry. It keeps its content while it is stopped.

    address: host:port in the private host's network; ca: the file with the authority that signed
    its certificate, the only file in its folder, or None for plain HTTP.
    """

    address: str
    container: DockerContainer
    ca: Path | None = None
    username: str = ""
    password: str = ""
    starts: int = 1

    def start(self) -> None:
        """Start the registry after `stop`, at the same address."""
        self.container.get_wrapped_container().start()
        self.starts += 1
        _listening(self.starts).wait_until_ready(self.container)

    def stop(self) -> None:
        """Kill the registry, as a loss of power does."""
        container = self.container.get_wrapped_container()
        container.kill()
        container.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def log(self) -> str:
        """Return the registry's log with its requests, of all its starts."""
        return b"".join(self.container.get_logs()).decode()

    def skopeo(self, side: str = "", password: str | None = None) -> list[str]:
        """Return skopeo's options to reach it; side: "src" or "dest" for `skopeo copy`."""
        side = side and f"{side}-"
        options = [f"--{side}cert-dir={self.ca.parent}"] if self.ca else [f"--{side}tls-verify=0"]
        if self.username:
            options.append(f"--{side}creds={self.username}:{password or self.password}")
        return options


def _listening(times: int) -> LogMessageWaitStrategy:
    """Wait until the log says `times` that it listens; the log continues over restarts."""
    strategy = LogMessageWaitStrategy(re.compile(f"(?s)(?:listening on 127.*?){{{times}}}"))
    return strategy.with_startup_timeout(PATIENCE).with_poll_interval(0.02)


@contextmanager
def serving(
    docker: Docker,
    image: str,
    port: int,
    authority: "Authority | None" = None,
    auth: dict[str, Any] | None = None,
) -> Iterator[Registry]:
    """Run a registry at 127.0.0.1. auth: that part of its configuration."""
    address = f"127.0.0.1:{port}"
    folder = docker.folder / "registries" / str(port)
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "version": 0.1,
        # An upload continues after a restart only with the same secret.
        "http": {"addr": address, "secret": "secret"},
        "storage": {"filesystem": {"rootdirectory": str(folder)}, "delete": {"enabled": True}},
    }
    if authority:
        config["http"]["tls"] = {
            "certificate": str(authority.certificate),
            "key": str(authority.key),
        }
    if auth:
        config["auth"] = auth
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    client = {"environment": {"DOCKER_HOST": docker.address}}
    container = DockerContainer(image, docker_client_kw=client, command=f"{folder}/config.yml")
    container.with_volume_mapping(docker.folder / "registries", f"{folder.parent}", "rw")
    container.with_kwargs(network="host").waiting_for(_listening(1))
    with container:
        registry = Registry(address, container, authority.ca if authority else None)
        if auth:
            registry.username, registry.password = USERNAME, PASSWORD
        yield registry


def image(docker: Docker) -> str:
    """Make the image that registries run from."""
    program = shutil.which("docker-registry", path="/usr/bin")
    assert program, "docker-registry is not installed"
    return docker.pack("docker-registry", program, entrypoint=[program, "serve"])


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and what it signed for servers on 127.0.0.1 and localhost."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def made(cls, docker: Docker) -> "Authority":
        """Make an authority with openssl, valid for a day."""
        folder = docker.folder / "registries" / "authority"
        clients = folder / "clients"  # skopeo takes all that is in the CA's folder
        clients.mkdir(parents=True)
        made = cls(clients / "ca.crt", folder / "server.crt", folder / "server.key")
        config = folder / "openssl.cnf"
        config.write_text(_OPENSSL_CONFIG)
        new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "1"]
        new += ["-config", str(config)]
        ca_key = folder / "ca.key"
        names = ["-subj", "/CN=authority of the tests", "-extensions", "authority"]
        _run(*new, *names, "-keyout", str(ca_key), "-out", str(made.ca))
        names = ["-subj", "/CN=localhost", "-extensions", "server"]
        signed = ["-CA", str(made.ca), "-CAkey", str(ca_key)]
        _run(*new, *names, *signed, "-keyout", str(made.key), "-out", str(made.certificate))
        return made


_OPENSSL_CONFIG = """\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, digitalSignature
[server]
basicConstraints = critical, CA:FALSE
subjectAltName = DNS:localhost, IP:127.0.0.1
"""


def basic(docker: Docker) -> dict[str, Any]:
    """Return the configuration of basic authentication for the user."""
    path = docker.folder / "registries" / "htpasswd"
    path.parent.mkdir(exist_ok=True)
    path.write_text(_run("htpasswd", "-niB", USERNAME, input=PASSWORD))
    return {"htpasswd": {"realm": "tests", "path": str(path)}}


@contextmanager
def token(docker: Docker, authority: Authority) -> Iterator[dict[str, Any]]:
    """Run a token server for the user; yield a registry's configuration that requires tokens."""
    log = docker.folder / "registries" / "tokens.log"
    argv = [sys.executable, "-m", "tests.support.registries.token_server"]
    argv += [str(authority.certificate), str(authority.key)]
    user = {"TOKEN_USER": f"{USERNAME}:{PASSWORD}"}
    daemon = Daemon(docker.host, *argv, log=log, env=user)
    try:
        realm = daemon.first_line()
        yield {
            "token": {
                "realm": realm,
                "service": "registry.test",
                "issuer": ISSUER,
                "rootcertbundle": str(authority.ca),
            }
        }
    finally:
        daemon.stop()


def _run(*argv: str, **options: Any) -> str:
    done = subprocess.run(argv, check=True, capture_output=True, text=True, **options)
    return str(done.stdout)
