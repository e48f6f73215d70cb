"""Unpack programs of another Debian suite so that they run on this host, without installing them.

The integration tests run against containerd 1.6, 1.7 and 2.x. Debian has one of each (bookworm,
trixie, sid), and a host has at most one of them. This fetches the others, each with the runc and
the CNI plugins of its suite:

    python3 -m testing.hosts.debian_suite trixie --into /opt/suites/trixie

It leaves `DIR/bin` (containerd, its shim, ctr, runc) and `DIR/cni`; put `DIR/bin` first on PATH to
use them. The host's packages, apt lists and caches stay as they are: apt works with a state of its
own, on the mirror and through the proxy the host has configured, and trusts Debian's keys only.

The programs want a newer glibc than the host's, so their libraries are unpacked in `DIR/root`, and
every program is edited to ask for that loader and that library folder. Wrapper scripts would not
work: the shim and runc start themselves again through /proc/self/exe or from a copy in memory. Nor
does patchelf: after 0.18, trixie's containerd crashes at start. `repoint` moves nothing.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FALLBACK_MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = ("containerd", "runc", "containernetworking-plugins")
PROGRAMS = {"bin": ("usr/bin", "usr/sbin", "bin", "sbin"), "cni": ("usr/lib/cni",)}
VERSIONED = ("containerd", "containerd-shim-runc-v2", "ctr", "runc")
MARKER = "suite.json"
FORMAT = 1  # raise it when folders made by an older version of this file do not work

ELF = b"\x7fELF"
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
DT_NULL, DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_RPATH = 0, 1, 5, 10, 15


class SuiteError(Exception):
    """The folder cannot be made; the message says why."""


def say(message: str) -> None:
    """Report progress."""
    print(message, file=sys.stderr, flush=True)


def run(argv: Sequence[str | Path], cwd: Path | None = None, **env: str) -> str:
    """Run a program and return its stdout; the error has the end of its output."""
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C.UTF-8", **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise SuiteError(f"{argv[0]} cannot be started: {error.strerror}") from error
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip())[-1000:]
        raise SuiteError(f"{argv[0]} ended with status {done.returncode}: {words}")
    return done.stdout


# Where the packages come from


def sources(etc: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Yield (URIs, components) of every binary entry in apt's configuration, in either format."""
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]:
        for line in path.read_text().splitlines() if path.is_file() else ():
            match = re.match(r"\s*deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+\S+([^#]*)", line)
            if match:
                yield [match[1]], match[2].split()
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        text = "\n".join(line for line in path.read_text().splitlines() if line[:1] != "#")
        for paragraph in re.split(r"\n\s*\n", text):
            lines = re.findall(r"^([\w-]+):(.*(?:\n[ \t].*)*)", paragraph, re.M)
            fields = {name.lower(): value.split() for name, value in lines}
            if "deb" in fields.get("types", []) and fields.get("enabled") != ["no"]:
                yield fields.get("uris", []), fields.get("components", [])


def mirrors(etc: Path) -> list[str]:
    """Return the mirrors of Debian's main archive that the host uses, then the public one."""
    uris = (uri.rstrip("/") for some, parts in sources(etc) if "main" in parts for uri in some)
    # other vendors' archives have other paths, and so have those of security updates
    own = [uri for uri in uris if re.search(r"/debian(\.list)?$", uri)]
    return list(dict.fromkeys([*own, FALLBACK_MIRROR]))


def apt_options(work: Path, architecture: str) -> str:
    """Render apt's private configuration, which shares only network settings with the host."""
    network = re.compile(r"Acquire::(https?|Retries|ForceIPv|Check-Date)\b", re.I)
    host = [line for line in run(["apt-config", "dump"]).splitlines() if network.match(line)]
    options = {
        "APT::Architecture": architecture,
        "APT::Update::Error-Mode": "any",
        "Acquire::Check-Valid-Until": "false",
        "Acquire::Languages": "none",
        "Dir::Cache": work / "cache",
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": work / "state",
        "Dir::State::status": work / "state/status",
    }
    ours = [f'{name} "{value}";' for name, value in options.items()]
    return "\n".join([*host, *ours, f'APT::Architectures {{ "{architecture}"; }};', ""])


@dataclass
class Archive:
    """One suite of Debian's archive, used through an apt that shares no state with the host's."""

    work: Path
    suite: str
    architecture: str
    keyring: Path
    versions: dict[str, str] = field(default_factory=dict)
    depends: set[str] = field(default_factory=set)

    def open(self, mirrors: Iterable[str]) -> None:
        """Fetch the list of packages from the first mirror that has the suite."""
        for folder in ("cache/archives/partial", "state/lists/partial", "debs"):
            (self.work / folder).mkdir(parents=True)
        with contextlib.suppress(LookupError, PermissionError):
            shutil.chown(self.work / "debs", "_apt")  # apt downloads as this user, not as root
        (self.work / "state/status").touch()
        (self.work / "apt.conf").write_text(apt_options(self.work, self.architecture))
        problems = []
        for mirror in mirrors:
            say(f"reading {self.suite} from {mirror}")
            source = f"deb [signed-by={self.keyring}] {mirror} {self.suite} main\n"
            (self.work / "sources.list").write_text(source)
            try:
                self._apt("update")
                return
            except SuiteError as error:
                problems.append(f"{mirror}: {error}")
        raise SuiteError("\n".join(["no mirror has the suite", *problems]))

    def unpack(self, packages: Iterable[str], root: Path) -> None:
        """Download packages and unpack them under root."""
        say(f"fetching {' '.join(packages)}")
        self._apt("download", *packages)
        for deb in sorted((self.work / "debs").glob("*.deb")):
            form = "--showformat=${Package}\n${Version}\n${Pre-Depends}, ${Depends}"
            name, version, depends = run(["dpkg-deb", "-W", form, deb]).split("\n", 2)
            self.versions[name] = version
            self.depends.update(re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]+)", depends))
            run(["dpkg-deb", "-x", deb, root])
            deb.unlink()

    def _apt(self, *words: str) -> None:
        """Run apt-get with the private configuration."""
        configuration = str(self.work / "apt.conf")
        run(["apt-get", "-q", *words], cwd=self.work / "debs", APT_CONFIG=configuration)


# Programs and their libraries


class Elf:
    """The parts of an ELF file that name its loader and libraries."""

    def __init__(self, data: bytes) -> None:
        """Read the program headers and the dynamic section."""
        if data[:6] != ELF + b"\x02\x01":
            raise SuiteError("only 64-bit little-endian programs can be handled")
        self.data = bytearray(data)
        (self.table,) = struct.unpack_from("<Q", data, 32)
        self.entry, count = struct.unpack_from("<HH", data, 54)
        # each: p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
        places = [self.table + i * self.entry for i in range(count)]
        self.headers = [struct.unpack_from("<IIQQQQQQ", data, place) for place in places]
        first = {header[0]: header for header in reversed(self.headers)}
        _, _, self.dynamic, _, _, size, *_ = first.get(PT_DYNAMIC, (0,) * 8)
        self.tags = list(struct.iter_unpack("<QQ", data[self.dynamic : self.dynamic + size]))
        self.loader = self._string(first[PT_INTERP][2]) if PT_INTERP in first else None

    @property
    def needed(self) -> set[str]:
        """The names of the libraries that it needs."""
        start = self.strings()[0] if self.tags else 0
        return {self._string(start + value) for tag, value in self.tags if tag == DT_NEEDED}

    def strings(self) -> tuple[int, int]:
        """Return where the dynamic string table is in the file, and its size."""
        tags = dict(self.tags)
        for header_type, _, offset, address, _, size, *_ in self.headers:
            if header_type == PT_LOAD and address <= tags[DT_STRTAB] < address + size:
                return tags[DT_STRTAB] - address + offset, tags[DT_STRSZ]
        raise SuiteError("a program whose dynamic strings are not loaded")

    def _string(self, offset: int) -> str:
        """Read a zero-terminated string."""
        return self.data[offset : self.data.index(0, offset)].decode()


def repoint(data: bytes, loader: str, folders: str) -> bytes:
    """Return a program that asks for another loader and looks for its libraries in these folders.

    Every byte that is loaded stays where it is. The loader's path and a copy of the dynamic
    strings, with the folders at its end, become one more segment behind all others. It is
    described by the header of a note (which nothing reads at run time), moved to behind the last
    segment's because they have to be in order; the new DT_RPATH takes a spare dynamic entry.
    """
    elf = Elf(data)
    start, size = elf.strings()
    loads = [header for header in elf.headers if header[0] == PT_LOAD]
    notes = [i for i, header in enumerate(elf.headers) if header[0] == PT_NOTE]
    spare = [i for i, tag in enumerate(elf.tags[:-1]) if tag[0] == DT_NULL]
    if not notes or not spare:
        raise SuiteError("a program without room for another library folder")
    align = max(header[7] for header in loads)
    offset = -(-len(data) // align) * align
    address = -(-max(header[3] + header[6] for header in loads) // align) * align
    name = loader.encode() + b"\0"
    table = data[start : start + size] + folders.encode() + b"\0"
    whole = len(name) + len(table)
    headers: list[tuple[int, ...]] = []
    for i, header in enumerate(elf.headers):
        if header[0] == PT_INTERP:
            headers.append((PT_INTERP, 4, offset, address, address, len(name), len(name), 1))
        elif i != notes[-1]:
            headers.append(header)
        if header is loads[-1]:
            headers.append((PT_LOAD, 4, offset, address, address, whole, whole, align))
    tags = {DT_STRTAB: address + len(name), DT_STRSZ: len(table)}
    entries = [(tag, tags.get(tag, value)) for tag, value in elf.tags]
    entries[spare[0]] = (DT_RPATH, size)
    for i, header in enumerate(headers):
        struct.pack_into("<IIQQQQQQ", elf.data, elf.table + i * elf.entry, *header)
    for i, entry in enumerate(entries):
        struct.pack_into("<QQ", elf.data, elf.dynamic + i * 16, *entry)
    return bytes(elf.data).ljust(offset, b"\0") + name + table


def libraries(root: Path) -> dict[str, Path]:
    """Return the suite's shared libraries and its loader by name."""
    return {path.name: path for path in sorted(root.glob("**/lib/*/*.so*"))}


def missing(programs: Iterable[Path], root: Path) -> set[str]:
    """Return the loaders and libraries that programs need and root lacks."""
    present = libraries(root)
    seen: set[str] = set()
    queue = list(programs)
    while queue:
        elf = Elf(queue.pop().read_bytes())
        wanted = elf.needed | ({Path(elf.loader).name} if elf.loader else set())
        queue += [present[name] for name in wanted - seen if name in present]
        seen |= wanted
    return seen - set(present)


def likely_package(library: str) -> str:
    """Return the package name that Debian's policy gives to a library."""
    stem, _, version = library.lower().replace("_", "-").partition(".so.")
    return f"{stem}-{version}" if stem[-1:].isdigit() else f"{stem}{version}"


def add_libraries(archive: Archive, programs: Sequence[Path], root: Path) -> None:
    """Unpack the libraries that programs need, without their packages' other dependencies."""
    while absent := missing(programs, root):
        choice = sorted(n for n in archive.depends - set(archive.versions) if n.startswith("lib"))
        names = {likely_package(library) for library in absent}
        if not choice:
            raise SuiteError(f"no dependency has {', '.join(sorted(absent))}")
        archive.unpack([n for n in choice if n.removesuffix("t64") in names] or choice, root)


# The folder that results


def build(archive: Archive, packages: Iterable[str], stage: Path, final: Path) -> None:
    """Fill a new folder with everything that is needed at its final place."""
    root = stage / "root"
    root.mkdir()
    archive.unpack(packages, root)
    programs = {
        stage / name / path.name: path
        for name, folders in PROGRAMS.items()
        for folder in folders
        for path in (root / folder).glob("*")
        if path.is_file() and not path.is_symlink()
    }
    elf_files = [path for path in programs.values() if path.read_bytes().startswith(ELF)]
    add_libraries(archive, elf_files, root)
    there = {name: final / path.relative_to(stage) for name, path in libraries(root).items()}
    folders = ":".join(sorted({str(path.parent) for path in there.values()}))
    for target, path in programs.items():
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
        data = target.read_bytes()
        loader = Elf(data).loader if path in elf_files else None
        if loader:
            target.write_bytes(repoint(data, str(there[Path(loader).name]), folders))


def check(final: Path) -> dict[str, str]:
    """Load every edited program's libraries; return the versions of the known programs."""
    for path in sorted(path for folder in PROGRAMS for path in final.glob(f"{folder}/*")):
        data = path.read_bytes()
        if data.startswith(ELF) and Elf(data).loader:
            loaded = run([path], LD_TRACE_LOADED_OBJECTS="1")
            for library in re.findall(r"=> (.*?)(?: \(|$)", loaded, re.M):
                if not library.startswith(f"{final}/"):
                    raise SuiteError(f"{path} would use {library}")
    known = [final / "bin" / name for name in VERSIONED if (final / "bin" / name).exists()]
    return {path.name: re.findall(r"\d+\.\d[^\s,]*|$", run([path, "-v"]))[0] for path in known}


def write_marker(folder: Path, content: Mapping[str, object]) -> None:
    """Write the file that says what a folder holds, atomically."""
    (folder / f".{MARKER}").write_text(json.dumps(content, indent=2) + "\n")
    os.replace(folder / f".{MARKER}", folder / MARKER)


def provide(
    suite: str,
    into: Path,
    packages: Iterable[str] = PACKAGES,
    mirror: str | None = None,
    keyring: Path = KEYRING,
) -> dict[str, object]:
    """Make the folder unless it exists as wanted; return what it holds."""
    final = Path(os.path.abspath(into))
    packages = sorted(set(packages))
    architecture = run(["dpkg", "--print-architecture"]).strip()
    wanted = {"format": FORMAT, "suite": suite, "architecture": architecture, "path": str(final)}
    content: dict[str, object] = {**wanted, "requested": packages}
    final.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as cleanup:
        lock = os.open(final.parent, os.O_RDONLY)
        cleanup.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        marker = final / MARKER
        there = json.loads(marker.read_text()) if marker.exists() else {}
        if "programs" in there and content.items() <= there.items():
            return dict(there)
        if final.exists() and not there and any(final.iterdir()):
            raise SuiteError(f"{final} holds something else")
        if not keyring.exists():
            raise SuiteError(f"{keyring} is missing; the package debian-archive-keyring has it")
        stage = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        cleanup.callback(shutil.rmtree, stage, ignore_errors=True)
        work = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="debian-suite-")))
        work.chmod(0o755)
        archive = Archive(work, suite, architecture, keyring.absolute())
        archive.open([mirror] if mirror else mirrors(Path("/etc/apt")))
        (stage / "new").mkdir()
        build(archive, packages, stage / "new", final)
        write_marker(stage / "new", content)  # the folder is ours, but not known to work
        if final.exists():
            os.replace(final, stage / "old")
        os.replace(stage / "new", final)
        content |= {"packages": archive.versions, "programs": check(final)}
        write_marker(final, content)
    return content


def main(argv: Sequence[str] | None = None) -> int:
    """Make the folder that the command line asks for and print its versions as JSON."""
    parser = argparse.ArgumentParser(prog="debian_suite", description=__doc__.split("\n")[0])
    parser.add_argument("suite", help="Debian suite, for example trixie or sid")
    parser.add_argument("--into", metavar="DIR", type=Path, required=True, help="folder to make")
    parser.add_argument("--packages", nargs="+", default=PACKAGES, help="packages with programs")
    parser.add_argument("--mirror", help="Debian mirror (default: what the host's apt uses)")
    parser.add_argument("--keyring", type=Path, default=KEYRING, help="keys to trust")
    options = parser.parse_args(argv)
    for word in (options.suite, *options.packages):
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", word):
            parser.error(f"not a name: {word}")
    try:
        print(json.dumps(provide(**vars(options)), indent=2))
    except (SuiteError, OSError) as error:
        say(f"debian_suite: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
