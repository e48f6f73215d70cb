"""A Docker of a private host's own, to compare with."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tools.private_host import PrivateHost

PROGRAM = shutil.which("dockerd", path="/usr/local/bin:/usr/sbin:/usr/bin")
_SECONDS = 60


@contextmanager
def docker(host: PrivateHost) -> Iterator[tuple[str, ...]]:
    """Run dockerd on a private host; return the words that `docker` commands begin with.

    What is left of it goes with the host. Raises RuntimeError when it does not start.
    """
    folder = host.folder / "docker"
    folder.mkdir()
    words = ("docker", "--host", f"unix://{folder}/socket")
    argv = [str(PROGRAM), "--host", f"unix://{folder}/socket", "--containerd", str(host.address)]
    argv += ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
    argv += ["--pidfile", f"{folder}/pid", "--config-file", f"{folder}/daemon.json"]
    argv += ["--bridge=none", "--iptables=false", "--ip-forward=false"]
    (folder / "daemon.json").write_text("{}")
    with open(folder / "log", "wb") as log:
        daemon = subprocess.Popen(
            host.enter(*argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        _await(host, words, daemon)
        yield words
    finally:
        # Its own process id, inside; what we have started is what took it there.
        with suppress(OSError, subprocess.CalledProcessError):
            host.run("kill", (folder / "pid").read_text())
        try:
            daemon.wait(_SECONDS)
        except subprocess.TimeoutExpired:  # it ends with the host
            daemon.kill()
            daemon.wait()


def _await(host: PrivateHost, words: tuple[str, ...], daemon: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _SECONDS
    while host.run(*words, "version", check=False).returncode:
        if daemon.poll() is not None or time.monotonic() > deadline:
            tail = (host.folder / "docker" / "log").read_text(errors="replace")[-1000:]
            raise RuntimeError(f"dockerd did not start:\n{tail}")
        time.sleep(0.1)
