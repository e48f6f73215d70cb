"""A private host for tests, the demo and benchmarks: containerd and the CPI in namespaces.

It has its own network, mounts and processes, so the system's are left alone. When its first process
ends, even in a crash, the kernel ends everything else. Needs root.
"""

import argparse
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testing.patience import PATIENCE
from testing.repository import REPOSITORY

CPI = Path(sys.executable).with_name("cpi")

_CGROUPS = ("cgroup", "cgroup2")  # file systems
_KILL_CONTAINERD, _START_CONTAINERD = signal.SIGUSR1, signal.SIGUSR2  # for the init

# `opt` would otherwise be /opt/containerd; CRI brings its own networks and is not needed.
_CONTAINERD_CONFIG = """\
version = 2
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri",
  "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.grpc.v1.sandbox-controllers"]
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/containerd/opt"
"""


class PrivateHost:
    """Start with `with`; then `cpi` and `run` act inside.

    programs: a folder with containerd, its shim and runc, else the system's; plugins: a folder with
    CNI plugins, else the default ones.
    """

    def __init__(self, programs: Path | None = None, plugins: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bosh-cpi-host-"))
        # Root of a VM in a user namespace, who is none here, passes through.
        for path in (self.folder, self.folder / "containerd"):
            path.mkdir(exist_ok=True)
            path.chmod(0o711)
        self.address = self.folder / "containerd.sock"
        self.cgroup = f"/{self.folder.name}"
        self.state = self.folder / "state"
        self._programs = programs
        self._plugins = plugins
        self.around: tuple[str, ...] = ()  # words before those that call the CPI
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> "PrivateHost":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def init(self) -> int:
        """The process id of its first process, seen from outside."""
        return self._init

    def config(self, **changes: Any) -> dict[str, Any]:
        """Return the CPI's configuration for this host; `changes` replace top-level keys."""
        containerd: dict[str, Any] = {"address": str(self.address), "cgroup_parent": self.cgroup}
        network: dict[str, Any] = {"cni_config_dir": str(self.folder / "cni")}
        if self._plugins:
            network["cni_plugin_dirs"] = [str(self._plugins)]
        return {
            "state_dir": str(self.state),
            "run_dir": str(self.folder / "run"),
            "containerd": containerd,
            "network": network,
            # Of agents whose manifest says nothing else; the stand-in then listens on its port.
            "agent": {"mbus": "nats://127.0.0.1:4222"},
            **changes,
        }

    def write_config(self, name: str = "cpi.json", **changes: Any) -> Path:
        """Write a configuration file and return its path."""
        path = self.folder / name
        path.write_text(json.dumps(self.config(**changes)))
        return path

    def enter(self, *argv: str) -> list[str]:
        """Return the command that runs `argv` inside."""
        namespaces = ["--net", "--mount", "--pid"]
        return ["nsenter", "--target", str(self._init), *namespaces, "--", *argv]

    def run(self, *argv: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a program inside and return what it printed; raises CalledProcessError."""
        options = {"check": True, "text": True, "capture_output": True, **options}
        options.setdefault("timeout", PATIENCE)
        result: subprocess.CompletedProcess[str] = subprocess.run(self.enter(*argv), **options)
        return result

    def loops(self) -> list[str]:
        """Return the files below the host's folder that have loop devices."""
        listed = json.loads(self.run("losetup", "--list", "--json").stdout or "{}")
        files = [str(loop["back-file"]) for loop in listed.get("loopdevices", [])]
        return sorted(file for file in files if file.startswith(str(self.folder)))

    def cpi(
        self,
        method: str,
        *arguments: Any,
        api_version: int = 2,
        context: Mapping[str, Any] | None = None,
        config: Path | None = None,
    ) -> dict[str, Any]:
        """Call the `cpi` executable as BOSH does and return its response.

        Its log is with what is on stderr, as a director keeps it.
        """
        request = {
            "method": method,
            "arguments": arguments,
            "context": dict(context or {"director_uuid": "private-host"}),
            "api_version": api_version,
        }
        path = config or self.folder / "cpi.json"
        if not path.exists():
            self.write_config()
        done = self.run(*self.around, str(CPI), "-c", str(path), input=json.dumps(request))
        response: dict[str, Any] = json.loads(done.stdout)
        return {**response, "log": f"{done.stderr}{response['log']}"}

    def stop(self) -> None:
        """Stop the host and remove its files, even after a failed start."""
        if self._process is not None:
            self._process.kill()  # which ends the namespaces' init, and so all the rest
            self._process.wait()
            _await_end(self._init)
        remove_cgroups(self.cgroup)
        shutil.rmtree(self.folder)

    def _start(self) -> None:
        config = self.folder / "containerd.toml"
        config.write_text(_CONTAINERD_CONFIG.format(folder=self.folder))
        search = [str(self._programs)] if self._programs else []
        path = ":".join([*search, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
        # The kernel ends it all with us, even when we are killed.
        unshare = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        init = [sys.executable, "-m", "testing.hosts.private_host", "--init", str(config)]
        with self._awaiting_containerd(), open(self.folder / "containerd.log", "wb") as log:
            self._process = subprocess.Popen(
                [*unshare, *init],
                cwd=REPOSITORY,
                env={"PATH": path, "NOTIFY_SOCKET": str(self.folder / "notify.sock")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we stop it after the cleanup
            )
        [self._init] = _children(self._process.pid)

    def kill_containerd(self) -> None:
        """Kill containerd; its shims and tasks live on."""
        containerd = self.containerd_pid
        os.kill(self._init, _KILL_CONTAINERD)
        _await_end(containerd)

    @property
    def containerd_pid(self) -> int:
        """The process id of containerd."""
        [containerd] = [pid for pid in _children(self._init) if _name(pid) == "containerd"]
        return containerd

    def start_containerd(self) -> None:
        """Start containerd again."""
        with self._awaiting_containerd():
            os.kill(self._init, _START_CONTAINERD)

    @contextmanager
    def _awaiting_containerd(self) -> Iterator[None]:
        """Wait, at the end, until the containerd started meanwhile is ready."""
        path = self.folder / "notify.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(path))
            ready.settimeout(PATIENCE)
            yield
            try:
                while b"READY=1" not in ready.recv(4096):
                    pass
            except TimeoutError:
                tail = (self.folder / "containerd.log").read_text()[-2000:]
                raise RuntimeError(f"containerd did not start:\n{tail}") from None


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _await_end(pid: int) -> None:
    """Wait for the end of a process that is not our child, and so of its namespace."""
    try:
        descriptor = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return
    try:
        select.select([descriptor], [], [], PATIENCE)
    finally:
        os.close(descriptor)


def cgroup_hierarchies() -> list[Path]:
    """Return where cgroups are mounted: one place on v2, one for each controller on v1."""
    mounted = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [Path(words[4]) for words in mounted if words[words.index("-") + 1] in _CGROUPS]


def remove_cgroups(name: str) -> None:
    """Remove the empty cgroups that killed tasks leave, in every hierarchy."""
    for root in cgroup_hierarchies():
        for folder, _, _ in os.walk(root / name.lstrip("/"), topdown=False):
            os.rmdir(folder)


def _run_init(config: str) -> None:
    """Run as the namespace's first process: start containerd, and reap orphans."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # Shims and runc keep their sockets and states below /run, not below containerd's `state`.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
    started: list[int] = []  # containerd's process; empty after it was killed on purpose

    def start(*_: object) -> None:
        started.append(subprocess.Popen(["containerd", "--config", config]).pid)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(_KILL_CONTAINERD, lambda *_: os.kill(started.pop(), signal.SIGKILL))
    signal.signal(_START_CONTAINERD, start)
    # With no child there is nothing to wait for; then an orphan, or one of these, wakes us.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    woken, waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    start()
    while True:
        try:
            pid, _ = os.wait()
        except ChildProcessError:
            select.select([woken], [], [])
            os.read(woken, 4096)
            continue
        if pid in started:
            sys.exit("containerd has ended")


def main(argv: Sequence[str] | None = None) -> None:
    """Run a shell, or a command, on a private host: for trying things by hand."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--init", metavar="CONFIG", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run there (a shell)")
    options = parser.parse_args(argv)
    if options.init:
        _run_init(options.init)
    with PrivateHost() as host:
        config = host.write_config()
        print(f"cpi -c {config}\nctr --address {host.address} --namespace bosh", file=sys.stderr)
        subprocess.run(host.enter(*(options.command or ["bash"])), check=False)


if __name__ == "__main__":
    main()
