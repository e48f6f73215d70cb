"""Docker's daemon on a private host, with that host's containerd."""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docker

from runtimes.containerd.host_facts import ceiling_of_server
from testing.hosts.daemon import Daemon
from testing.hosts.notify import started
from testing.hosts.private_host import PrivateHost, cgroup_hierarchies, remove_cgroups

# Docker before 23 gives a privileged container all capabilities there are, also those that this
# host lacks, and then it cannot start; later ones give those of the host.
_RUNC = """\
#!{python} -IS
import json, os, sys
paths = {{"create": "--bundle", "exec": "--process"}}
option = next((paths[word] for word in sys.argv if word in paths), None)
if option:
    path = sys.argv[sys.argv.index(option) + 1]
    path += "/config.json" if option == "--bundle" else ""
    with open(path) as file:
        spec = json.load(file)
    sets = spec.get("process", spec)["capabilities"]
    for name_of_set, names in sets.items():
        sets[name_of_set] = [name for name in names if name in {capabilities}]
    with open(path, "w") as file:
        json.dump(spec, file)
os.execvp("runc", sys.argv)
"""


class Docker:
    """Start with `with`; then `client` is docker-py's, and `load` and `pack` make images.

    Containers have the network mode "none", or "host" for the private host's network.
    """

    def __init__(self, host: PrivateHost) -> None:
        self.host = host
        self.folder = host.folder / "docker"
        self.address = f"unix://{self.folder}/docker.sock"
        self.client: Any = None
        self._cgroup = f"{host.cgroup}/docker"
        self._daemon: Daemon | None = None
        self._mounted = False

    def __enter__(self) -> "Docker":
        self.folder.mkdir()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def load(self, archive: Path) -> str:
        """Run `docker load`; return the id of the only image in the archive."""
        with open(archive, "rb") as file:
            (image,) = self.client.images.load(file)
        return str(image.id)

    def pack(self, name: str, *programs: str, entrypoint: Sequence[str]) -> str:
        """Make an image of this machine's programs and their libraries."""
        change = f"ENTRYPOINT {json.dumps(list(entrypoint))}"
        self.client.api.import_image_from_data(
            packed(*programs), repository=name, tag="test", changes=[change]
        )
        return f"{name}:test"

    def run(self, image: str, *command: str, **options: Any) -> str:
        """Run a container to its end and return what it printed; raises ContainerError."""
        options = {"network_mode": "none", "remove": True, **options}
        return str(self.client.containers.run(image, list(command), **options).decode())

    def stop(self) -> None:
        """Stop Docker and remove its files, even after a failed start."""
        try:
            if self.client is not None:
                for container in self.client.containers.list(all=True):
                    container.remove(force=True, v=True)
                self.client.close()
                self.client = None
        finally:
            self._stop_daemon()

    def _stop_daemon(self) -> None:
        try:
            if self._daemon is not None:
                self._daemon.stop()
                self._daemon = None
                ctr = ["ctr", "--address", str(self.host.address)]
                self.host.run(*ctr, "namespaces", "remove", "moby", check=False)  # if it was made
        finally:
            if self._mounted:
                self.host.run("umount", "/etc/docker")
                self._mounted = False
            remove_cgroups(self._cgroup)
            shutil.rmtree(self.folder)

    def _start(self) -> None:
        config = self.folder / "daemon.json"
        config.write_text(json.dumps(self._config()))
        self._write_runc()
        # Docker keeps a key in /etc/docker; no option changes that.
        self.host.run("mount", "-t", "tmpfs", "tmpfs", "/etc/docker")
        self._mounted = True
        _make_cgroups(self._cgroup)
        self._daemon = started(
            self.host, "dockerd", "--config-file", str(config), folder=self.folder
        )
        self.client = docker.DockerClient(base_url=self.address)
        self.client.ping()

    def _config(self) -> dict[str, Any]:
        return {
            "hosts": [self.address],
            "containerd": str(self.host.address),
            "data-root": str(self.folder / "root"),
            "exec-root": str(self.folder / "run"),
            "pidfile": str(self.folder / "docker.pid"),
            "cgroup-parent": self._cgroup,
            "exec-opts": ["native.cgroupdriver=cgroupfs"],  # so that the parent is a path
            "runtimes": {"limited": {"path": str(self.folder / "runc")}},
            "default-runtime": "limited",
            "features": {"containerd-snapshotter": False},  # images would outlive Docker
            "bridge": "none",
            "iptables": False,
            "ip6tables": False,
        }

    def _write_runc(self) -> None:
        runc = self.folder / "runc"
        capabilities = sorted(ceiling_of_server(str(self.host.address)).capabilities)
        runc.write_text(_RUNC.format(python=sys.executable, capabilities=capabilities))
        runc.chmod(0o755)


def _make_cgroups(name: str) -> None:
    """Create the containers' parent at the start, so that no test appears to leak it."""
    for hierarchy in cgroup_hierarchies():
        (hierarchy / name.lstrip("/")).mkdir(parents=True, exist_ok=True)


def packed(*programs: str) -> bytes:
    """Return a tar of programs and their libraries, each at its path."""
    paths = set(programs)
    for program in programs:
        listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True)
        paths |= set(re.findall(r"(/\S+) \(0x", listed.stdout))
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", dereference=True) as tar:
        for path in sorted(paths):
            tar.add(path)
    return data.getvalue()
