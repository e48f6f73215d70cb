"""What a stemcell's build needs of its host: a work folder, apt's sources, the proxy."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from testing.repository import REPOSITORY
from testing.stemcells.stemcell_rootfs import BuildError, run

PROGRAMS = {
    "chroot": "coreutils",
    "gzip": "gzip",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "setpriv": "util-linux",
    "tar": "tar",
    "unshare": "util-linux",
}
MEMORY_NEEDED = 4 << 30  # bytes to spare before the stemcell is made in memory
WORKER = "STEMCELL_WORKER"  # in the worker's environment: whether its mounts are its own
PRIVATE = "private"
APT_SETTINGS = re.compile(r'Acquire::(http|https|Check|Retries|ForceIPv)\S* ".+";')


def check(output: Path | None) -> None:
    """Raise BuildError when this machine or user cannot make a stemcell."""
    if os.geteuid() != 0:
        raise BuildError("needs root, for the owners of the stemcell's files: run it with sudo")
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise BuildError(f"{program} is not installed: apt-get install {package}")
    folder = (output or Path("x")).absolute().parent
    if not os.access(folder, os.W_OK):
        raise BuildError(f"cannot write to {folder}")


def run_worker(argv: Sequence[str]) -> int:
    """Run a program with its own mounts, if that is allowed; return its exit status.

    So no mount for the stemcell leaks to the host. The program gets SIGTERM when the caller ends.
    """
    start = ["setpriv", "--pdeathsig", "TERM", "--"]
    private = ["unshare", "--mount", "--propagation", "private", "--"]
    allowed = subprocess.run([*private, "true"], stderr=subprocess.DEVNULL, check=False)
    if not allowed.returncode:
        start += private
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    mounts = "shared" if allowed.returncode else PRIVATE
    env = {**os.environ, "PYTHONPATH": ":".join(path), WORKER: mounts}
    with subprocess.Popen([*start, *argv], env=env) as worker:
        try:
            return worker.wait()
        except KeyboardInterrupt:  # which the worker got, too
            return worker.wait()


def in_worker() -> bool:
    """Return whether this process is the one that run_worker started."""
    return WORKER in os.environ


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """Yield a temporary folder that apt's own user may enter.

    It is in memory if there is enough, which halves the time, and if TMPDIR is not set.
    """
    parent = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108 (mkdtemp makes it safe)
    try:
        work = Path(tempfile.mkdtemp(prefix="stemcell-", dir=parent))
    except OSError as error:
        raise BuildError(f"cannot make a folder in {parent}: {error}") from None
    in_memory = os.environ.get(WORKER) == PRIVATE and "TMPDIR" not in os.environ
    in_memory = in_memory and spare_memory() >= MEMORY_NEEDED
    try:
        work.chmod(0o711)
        if in_memory:
            run(["mount", "-t", "tmpfs", "-o", "mode=0711,size=75%", "stemcell", str(work)])
        yield work
    finally:
        remove_folder(work)


def remove_folder(folder: Path) -> None:
    """Remove a folder. Raises BuildError if something is mounted in it and cannot be unmounted.

    mmdebstrap leaves mounts of the host's own files when it is killed.
    """
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    # Spaces and the like are octal there, see proc(5).
    targets = [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines]
    inside = [target for target in targets if folder.resolve() in (target, *target.parents)]
    for target in reversed(inside):
        run(["umount", "--lazy", str(target)])
    run(["rm", "-rf", "--one-file-system", str(folder)])


def spare_memory() -> int:
    """Return how many bytes of memory this process may use."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    limits = [int(available[1]) << 10 if available else 0]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroup v2 and v1
        with contextlib.suppress(OSError, ValueError):
            limits.append(int((Path("/sys/fs/cgroup") / name).read_text()))
    return min(limits)


def mirrors(suite: str, etc: Path = Path("/etc")) -> list[str]:
    """Return the host's own sources for a suite, as lines of sources.list.

    Only the distribution's own: those with the component main, for the suite itself, its updates
    or its security fixes. A Debian host without any is taken to have its mirrors for all suites.
    If that leaves none, the list is empty and mmdebstrap chooses.
    """
    lines = suite_lines(suite, suite, etc / "apt")
    release = etc / "os-release"
    if not lines and release.is_file():
        host = dict(re.findall(r"^(\w+)=\"?(.*?)\"?$", release.read_text(), re.MULTILINE))
        if host.get("ID") == "debian" and "VERSION_CODENAME" in host:
            lines = suite_lines(host["VERSION_CODENAME"], suite, etc / "apt")
    return lines


def suite_lines(suite: str, wanted: str, apt: Path) -> list[str]:
    """Return the distribution's own sources for one suite, as lines for another suite."""
    names = {f"{suite}{part}": f"{wanted}{part}" for part in ("", "-updates", "-security")}
    lines = []
    for options, uris, suites, components in sources(apt):
        if "main" in components and "archive-keyring" in (options or "archive-keyring"):
            start = f"deb [{options}]" if options else "deb"
            chosen = [names[name] for name in suites if name in names]
            lines += [f"{start} {u} {n} {' '.join(components)}" for u in uris for n in chosen]
    return list(dict.fromkeys(lines))


def sources(apt: Path) -> Iterator[tuple[str, list[str], list[str], list[str]]]:
    """Yield every source in apt's configuration: its options, addresses, suites and components."""
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]:
        for line in path.read_text().splitlines() if path.is_file() else ():
            match = re.match(r"\s*deb\s+(?:\[(.*?)\]\s*)?(\S+)\s+(\S+)\s+([^#]+)", line)
            if match:
                options, uri, name, components = match.groups()
                yield (options or "").strip(), [uri], [name], components.split()
    for path in sorted((apt / "sources.list.d").glob("*.sources")):
        text = "\n".join(line for line in path.read_text().splitlines() if line[:1] != "#")
        for stanza in re.split(r"\n\s*\n", text):
            pairs = re.findall(r"^([\w-]+):(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
            fields = {name.lower(): value.split() for name, value in pairs}
            if "deb" not in fields.get("types", []) or fields.get("enabled") == ["no"]:
                continue
            keyring = fields.get("signed-by", [])
            # A key that stands in the file itself is left out: mmdebstrap looks for a keyring.
            options = f"signed-by={keyring[0]}" if keyring and keyring[0][:1] == "/" else ""
            yield options, *(fields.get(name, []) for name in ("uris", "suites", "components"))


def apt_options() -> list[str]:
    """Return apt's settings for the network, such as the proxy, and for mirrors' passwords."""
    dump = run(["apt-config", "dump"]) if shutil.which("apt-config") else ""
    return [
        *(line for line in dump.splitlines() if APT_SETTINGS.fullmatch(line)),
        'Acquire::Languages "none";',
        'Dir::Etc::netrc "/etc/apt/auth.conf";',
        'Dir::Etc::netrcparts "/etc/apt/auth.conf.d";',
    ]
