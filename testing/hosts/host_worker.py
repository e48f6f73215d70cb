"""Work inside a host for the driver: one JSON request a line on stdin, one answer on stdout.

It runs in the host's namespaces for as long as they are needed, so that what it times is the
program itself and not the way in. Started by its path, hence the standard library only.
"""

import base64
import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

# What the director gives to a CPI, and where containerd's programs may be.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}

DAEMONS = ("containerd", "dockerd")

# Files that CNI's host-local plugin keeps forever.
BOOKKEEPING = ("lock", "last_reserved_ip.")

# What containerd has, as a title and the words for `ctr`.
CONTAINERD_LISTS = (
    ("containers", ("containers", "ls", "-q")),
    ("tasks", ("tasks", "ls", "-q")),
    ("snapshots", ("snapshots", "ls")),
    ("images", ("images", "ls", "-q")),
    ("content blobs", ("content", "ls", "-q")),
    ("leases", ("leases", "ls", "-q")),
)


def run(argv: Sequence[str], stdin: str = "") -> dict[str, Any]:
    """Run a program; times are milliseconds.

    cpu is user and system time of the program and of all that it waited for, daemon that of the
    daemons meanwhile (in steps of 10 ms). memory is the most that was resident of the program, or
    of one that it waited for, in MiB: of the largest of them, not of all together.
    """
    daemon = _daemon_ticks()
    # Files, not pipes that would have to be read meanwhile: so this can wait with wait4, which
    # returns the memory of this child only.
    with ExitStack() as stack:
        feed, output, errors = (stack.enter_context(TemporaryFile()) for _ in range(3))
        feed.write(stdin.encode())
        feed.seek(0)
        start = time.perf_counter()
        process = subprocess.Popen(argv, stdin=feed, stdout=output, stderr=errors, env=ENVIRONMENT)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        return {
            "status": process.returncode,
            "stdout": _text(output),
            "stderr": _text(errors),
            "wall": wall * 1e3,
            "cpu": (used.ru_utime + used.ru_stime) * 1e3,
            "daemon": (_daemon_ticks() - daemon) * 1e3 / os.sysconf("SC_CLK_TCK"),
            "memory": used.ru_maxrss / 1024,
        }


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def _daemon_ticks() -> int:
    """Return the CPU time of this host's daemons and their children, in clock ticks (proc(5))."""
    total = 0
    for _, name, folder in _processes():
        if name in DAEMONS:
            with suppress(OSError):  # it may just have ended
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                # User and system time, and those of its children: containerd has unpigz inflate.
                total += sum(int(field) for field in fields[11:15])
    return total


def _processes() -> Iterator[tuple[int, str, Path]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            folder = Path("/proc") / entry
            try:
                yield int(entry), (folder / "comm").read_text().strip(), folder
            except OSError:
                continue  # it has ended


def post(
    address: str, port: int, message: Any, user: str, ca: str, timeout: float
) -> dict[str, Any]:
    """Send an agent one message; TLS when there is a certificate, `user` is "name:password"."""
    connection = _connection(address, port, ca, timeout)
    headers = {"Content-Type": "application/json"}
    if user:
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    try:
        connection.request("POST", "/agent", json.dumps(message), headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            return {"failure": f"the agent answered with status {response.status}"}
        return {"answer": json.loads(body)}
    finally:
        connection.close()


def _connection(address: str, port: int, ca: str, timeout: float) -> http.client.HTTPConnection:
    if not ca:
        return http.client.HTTPConnection(address, port, timeout=timeout)
    context = ssl.create_default_context(cadata=ca)
    context.check_hostname = False  # our own certificate, without a name
    return http.client.HTTPSConnection(address, port, timeout=timeout, context=context)


def inventory(
    ctr: Sequence[str], folder: str, marks: Sequence[str], bridge: str
) -> dict[str, list[str]]:
    """Return the parts of VMs, disks and stemcells on this host, by title.

    folder: where the CPI keeps its state; marks: words in the names of our resources; bridge: of
    the network.
    """
    resources = {title: _listed([*ctr, *words]) for title, words in CONTAINERD_LISTS}
    resources["processes"] = sorted(_marked_processes(marks))
    resources["mounts"] = sorted(_marked_mounts(marks))
    resources["loop devices"] = sorted(_loop_devices(folder))
    resources["cgroups"] = sorted(_cgroups(Path(folder).name))
    resources["network interfaces"] = _listed(
        ["ip", "-brief", "link", "show", "master", bridge], heading=False
    )
    resources["firewall rules"] = [
        line.strip()
        for line in _listed(["nft", "list", "ruleset"], whole=True, heading=False)
        if "-vm-" in line
    ]
    resources["files of the CPI"] = sorted(_files(Path(folder)))
    return resources


def _listed(argv: Sequence[str], *, whole: bool = False, heading: bool = True) -> list[str]:
    """Return the first word of each line that a program prints; none if it fails."""
    lines = run(argv)["stdout"].splitlines()
    if heading and "-q" not in argv:
        lines = lines[1:]
    return sorted(line if whole else line.split()[0] for line in lines if line.strip())


def _marked_processes(marks: Sequence[str]) -> Iterator[str]:
    for pid, name, folder in _processes():
        try:
            words = (folder / "cmdline").read_bytes() + (folder / "cgroup").read_bytes()
        except OSError:
            continue
        if pid != os.getpid() and any(mark.encode() in words for mark in marks):
            yield f"{name} ({pid})"


def _marked_mounts(marks: Sequence[str]) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if any(mark in line for mark in marks):
            yield line.split()[4]


def _loop_devices(folder: str) -> Iterator[str]:
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = file.read_text()
        except OSError:
            continue  # freed meanwhile
        if folder in backing:
            yield f"{file.parent.parent.name} {backing.strip()}"


def _cgroups(name: str) -> Iterator[str]:
    """Yield the cgroups below the host's, in each hierarchy."""
    for root in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
        for folder, names, _ in os.walk(root / name):
            yield from (f"{folder}/{child}" for child in names)


def _files(folder: Path) -> Iterator[str]:
    """Yield the files of the state and run folders, with networks' pins, and folders of VMs."""
    for part in ("state", "run"):
        for name, children, files in os.walk(folder / part):
            path = Path(name)
            if path == folder / "run" / "bridges":  # they stay, as the bridges do
                continue
            if path == folder / "run" / "userns":  # what was found out of the host
                files = [file for file in files if file != ".works"]
            if path == folder / "state" / "vms":
                yield from (str((path / child).relative_to(folder)) for child in children)
                children.clear()
            for file in files:
                if not file.startswith(BOOKKEEPING):
                    yield str((path / file).relative_to(folder))


OPERATIONS: dict[str, Callable[..., Any]] = {"run": run, "post": post, "inventory": inventory}


def main() -> None:
    """Answer requests until stdin ends: {"do": operation, its arguments} -> its answer.

    The answer to a failed operation has `failure`.
    """
    for line in sys.stdin:
        request = json.loads(line)
        operation = OPERATIONS[request.pop("do")]
        try:
            answer = operation(**request)
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer = {"failure": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
