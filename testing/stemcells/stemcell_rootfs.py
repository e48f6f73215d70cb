"""The root file system of a warden stemcell, made from Debian's packages (see make_stemcell)."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from testing.repository import REPOSITORY

FILES = Path(__file__).parent / "stemcell_files"
# The stand-in agent's files, below the repository.
AGENT = "testing/agent"
STAND_IN = (
    "testing/__init__.py",
    *(f"{AGENT}/{name}.py" for name in ("__init__", "stand_in_agent", "stand_in_disks")),
)
MERGED_USR_HOOK = Path("/usr/share/mmdebstrap/hooks/maybe-merged-usr")

BASE_PACKAGES = ("hostname", "iproute2", "iputils-ping", "mount", "passwd", "procps")
INIT_PACKAGES = {"systemd": ("systemd", "systemd-sysv", "dbus"), "runit": ("runit",)}
STAND_IN_PACKAGES = ("python3",)
AGENT_PACKAGES = (
    # what the agent itself calls
    *("cron", "e2fsprogs", "fdisk", "iputils-arping", "logrotate", "openssh-server", "parted"),
    *("rsync", "rsyslog", "sudo", "tar", "xfsprogs"),
    # what syslog forwarding releases configure
    *("rsyslog-gnutls", "rsyslog-openssl", "rsyslog-relp"),
    # what jobs and operators expect of any stemcell
    *("apt", "bzip2", "ca-certificates", "curl", "file", "less", "lsof", "netbase", "nftables"),
    *("psmisc", "tzdata", "unzip", "vim-tiny", "wget", "xz-utils", "zip"),
)
AGENT_INIT_PACKAGES = {"systemd": ("systemd-resolved",), "runit": ()}
VCAP_GROUPS = "admin,adm,audio,cdrom,dialout,floppy,video,bosh_sshers,dip,plugdev"

DIRECTORIES = {
    "var/vcap/bosh": 0o700,
    "var/vcap/bosh/bin": 0o755,
    "var/vcap/bosh/etc": 0o755,
    "var/vcap/bosh/log": 0o755,
    "var/vcap/data": 0o755,
    "var/vcap/micro_bosh/data/cache": 0o755,
    "var/vcap/monit/svlog": 0o755,
    "warden-cpi-dev": 0o755,
}
MODES = {
    "etc/sudoers.d/bosh_sudoers": 0o440,
    "etc/sv/agent": 0o700,
    "home/vcap": 0o700,
    "var/vcap/bosh/etc/monitrc": 0o700,
    "var/vcap/monit/alerts.monitrc": 0o600,
}
# Masked like in BOSH's own warden stemcells; what else a container cannot run, its CPI masks.
MASKED_UNITS = ("systemd-binfmt.service", "systemd-udevd.service")
WANTS = "etc/systemd/system/multi-user.target.wants"
LINKS = {
    "systemd": {
        f"{WANTS}/bosh-agent.service": "/usr/lib/systemd/system/bosh-agent.service",
        "etc/systemd/system/agent.service": "/usr/lib/systemd/system/bosh-agent.service",
        **{f"etc/systemd/system/{unit}": "/dev/null" for unit in MASKED_UNITS},
    },
    "runit": {"etc/service/agent": "/etc/sv/agent"},
    "agent": {"var/vcap/bosh/bin/bosh-enable-monit-access": "bosh-agent"},
    "agent-systemd": {
        f"{WANTS}/monit.service": "/usr/lib/systemd/system/monit.service",
        "var/vcap/bosh/log/current": "/var/log/bosh-agent.log",
    },
    # runsvdir looks for new services every 5 s only, so monit is there, down, from the start.
    "agent-runit": {
        f"etc/service/{name}": f"/etc/sv/{name}" for name in ("cron", "monit", "rsyslog", "ssh")
    },
}

TRIMMED = (
    *("dev/*", "run/*", "tmp/*", "boot/*", "var/cache/apt/*", "var/lib/apt/lists/*"),
    *("usr/share/man/*", "usr/share/info/*", "usr/share/locale/*", "usr/share/bug/*"),
    *("usr/share/doc-base/*", "usr/share/lintian/*", "usr/share/menu/*", "usr/share/linda/*"),
    *("etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap"),
    # differs from build to build, or from machine to machine
    *("etc/ssh/ssh_host_*", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-"),
    *("etc/subuid-", "etc/subgid-", "etc/.pwd.lock", "var/cache/ldconfig/*", "var/lib/dpkg/*-old"),
    *("var/cache/debconf/*-old", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed"),
)
STAND_IN_TRIMMED = (
    *("usr/lib/*/gconv/*", "usr/share/bash-completion", "usr/share/zsh", "usr/share/pixmaps/*"),
    *(f"usr/lib/python3.*/{name}" for name in ("lib2to3", "pydoc_data", "distutils", "unittest")),
    *(f"usr/lib/python3.*/{name}" for name in ("idlelib", "ensurepip", "tkinter", "test")),
)
DEV_TOOLS = re.compile(
    r"(binutils|bison|build-essential|clang|cmake|cpp|debhelper|dpkg-dev|flex|g\+\+|gcc|gettext"
    r"|lib(gcc|stdc\+\+|clang-common)-\d+-dev|llvm|make|patch)(-\d+)?(-(x86-64|aarch64)-linux-gnu)?"
)
# lines of apt's and dpkg's that say nothing about why they failed
NOISE = re.compile(
    r"(Get:|Ign:|Fetched|\(Reading database|Reading|Building|Selecting|Preparing|Unpacking)"
    r"|(Setting up|Processing triggers|Chrooting|I: )"
)


class BuildError(Exception):
    """The stemcell cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What goes into the stemcell; `agent` None means our own stand-in."""

    init: str
    suite: str
    agent: Path | None = None
    monit: Path | None = None
    extra: tuple[tuple[Path, str], ...] = ()
    include: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The folders of stemcell_files and the groups of LINKS that apply, in order."""
        if self.agent is None:
            return ("any", self.init, "stand-in")
        return ("any", self.init, "agent", f"agent-{self.init}")

    @property
    def packages(self) -> tuple[str, ...]:
        """Debian's packages to install on top of its essential ones."""
        chosen = [*BASE_PACKAGES, *INIT_PACKAGES[self.init]]
        if self.agent is None:
            chosen += STAND_IN_PACKAGES
        else:
            chosen += [*AGENT_PACKAGES, *AGENT_INIT_PACKAGES[self.init]]
        return (*chosen, *self.include)


def run(argv: Sequence[str], *, env: dict[str, str] | None = None) -> str:
    """Run a program without a shell and return its stdout; raises BuildError with its stderr."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    except FileNotFoundError:
        raise BuildError(f"{argv[0]} is not installed") from None
    if done.returncode:
        raise BuildError(f"{' '.join(argv)} failed: {done.stderr.strip()}")
    return done.stdout


def in_root(root: Path, *argv: str) -> str:
    """Run a program of the rootfs inside it; needs root and no mounts."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "COLUMNS": "160"}
    return run(["chroot", str(root), *argv], env=env)


def inside(root: Path, name: str) -> Path:
    """Return the path of `name` below the rootfs, with its folder made (0755).

    Raises BuildError when it leads out of the rootfs, as through one of its absolute links.
    """
    path = root / name.lstrip("/")
    folder = path.parent.resolve()
    if ".." in Path(name).parts or not folder.is_relative_to(root.resolve()):
        raise BuildError(f"{name} leads out of the stemcell")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / path.name


def bootstrap(argv: Sequence[str], say: Callable[[str], None]) -> None:
    """Run mmdebstrap, calling `say` with its progress.

    Raises BuildError with the end of its output. When this process is interrupted, mmdebstrap and
    its children get 3 s to end before they are killed.
    """
    env = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    tail: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        argv,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=env,
        start_new_session=True,  # to end the group: on SIGTERM, mmdebstrap lets apt finish first
    ) as child:
        assert child.stderr is not None  # noqa: S101 (for the type checker: it is a pipe)
        try:
            for line in child.stderr:
                if not NOISE.match(line):
                    tail.append(line)
                if re.match(r"I: (running apt-get update|downl|extr|installing)", line):
                    say(line[3:].strip().rstrip("."))
            status = child.wait()
        except BaseException:
            end_group(child)
            raise
    if status:
        raise BuildError(f"mmdebstrap failed with status {status}:\n{''.join(tail)}")


def end_group(child: subprocess.Popen[str]) -> None:
    """End a process that leads a group, and the whole group with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(3)
        os.killpg(child.pid, signal.SIGKILL)


def mmdebstrap_argv(plan: Plan, root: Path, options: Sequence[str]) -> list[str]:
    """Return the command for a plan; `options`: lines for apt's configuration."""
    argv = ["mmdebstrap", "--mode=root", "--variant=essential", "--format=directory"]
    argv += [f"--include={','.join(plan.packages)}", "--dpkgopt=force-unsafe-io"]
    argv += [f"--aptopt={option}" for option in options]
    if MERGED_USR_HOOK.is_dir():
        # Without it bookworm installs usrmerge, which needs all of Perl: 45 MB and 4 s.
        argv.append(f"--hook-dir={MERGED_USR_HOOK}")
    return [*argv, plan.suite, str(root), *plan.mirrors]


def furnish(root: Path, plan: Plan, version: str) -> None:
    """Turn a bare Debian into a BOSH stemcell: accounts, files, agent, services."""
    make_accounts(root, real=plan.agent is not None)
    if plan.init == "runit":
        remove(root / "etc/service")  # Debian's runit links it to its runlevels
        remove(root / "etc/sv")  # and Debian's services expect what those set up
    for name, mode in DIRECTORIES.items():
        inside(root, f"{name}/x")
        (root / name).chmod(mode)
    for layer in plan.layers:
        for source in sorted((FILES / layer).rglob("*")):
            if source.is_file():
                put(root, str(source.relative_to(FILES / layer)), source)
        for name, target in LINKS.get(layer, {}).items():
            link = inside(root, name)
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    put_agent(root, plan)
    put_facts(root, plan, version)
    for name, mode in MODES.items():
        if (root / name).exists():
            (root / name).chmod(mode)


def put(root: Path, name: str, source: Path) -> None:
    """Copy a file into the rootfs, 0755 if it is executable, else 0644.

    Its time is not copied, since it differs between checkouts.
    """
    target = inside(root, name)
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def put_agent(root: Path, plan: Plan) -> None:
    """Install the agent, monit and the extra files."""
    binaries = root / "var/vcap/bosh/bin"
    if plan.agent is not None:
        put(root, "var/vcap/bosh/bin/bosh-agent", plan.agent)
    else:
        for name in STAND_IN:
            put(root, f"var/vcap/bosh/stand_in/{name}", REPOSITORY / name)
        # So that no VM has to; by content, since files have no times that can be relied on.
        compile_all = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        in_root(root, "python3", *compile_all, "/var/vcap/bosh/stand_in")
    if plan.monit is not None:
        put(root, "var/vcap/bosh/bin/monit", plan.monit)
    elif plan.agent is not None:
        # The agent ends itself unless its service manager can start something called monit.
        (binaries / "monit").write_text("#!/bin/sh\n# No monit was given.\nexec sleep infinity\n")
    for path in binaries.glob("*"):
        if not path.is_symlink():
            path.chmod(0o755)
    for source, name in plan.extra:
        put(root, name, source)


def put_facts(root: Path, plan: Plan, version: str) -> None:
    """Write what the agent, the CPI and operators read about the stemcell."""
    linux: dict[str, bool | str] = {
        "UseDefaultTmpDir": True,
        "UsePreformattedPersistentDisk": True,
        "BindMountPersistentDisk": True,
        "SkipDiskSetup": True,
    }
    if plan.init == "systemd":
        linux["ServiceManager"] = "systemd"
    source = {"Type": "File", "SettingsPath": "/var/vcap/bosh/warden-cpi-agent-env.json"}
    agent = {
        "Platform": {"Linux": linux},
        "Infrastructure": {"Settings": {"Sources": [source]}},
    }
    bosh = root / "var/vcap/bosh"
    (bosh / "agent.json").write_text(json.dumps(agent, indent=2) + "\n")
    (bosh / "etc/infrastructure").write_text("warden")
    (bosh / "etc/operating_system").write_text("ubuntu")  # the agent's one Linux platform
    (bosh / "etc/stemcell_version").write_text(version)
    (bosh / "etc/static_libraries_list").write_text("")
    (bosh / "etc/dev_tools_file_list").write_text("".join(f"{f}\n" for f in dev_tools(root)))
    (root / "etc/hostname").write_text("bosh-stemcell\n")
    (root / "etc/machine-id").write_text("")  # every machine makes its own
    if not (root / "etc/resolv.conf").is_symlink():
        (root / "etc/resolv.conf").write_text("")


def make_accounts(root: Path, *, real: bool) -> None:
    """Add the users and groups of a stemcell, without passwords."""
    in_root(root, "groupadd", "--gid", "1000", "vcap")
    for group in ("admin", "bosh_sshers", "bosh_sudoers"):
        in_root(root, "groupadd", "--system", group)
    vcap = ["--uid", "1000", "--gid", "vcap", "--groups", VCAP_GROUPS, "--create-home"]
    in_root(root, "useradd", *vcap, "--shell", "/bin/bash", "--comment", "BOSH System User", "vcap")
    if real:
        syslog = ["--system", "--user-group", "--groups", "vcap", "--no-create-home"]
        syslog += ["--home-dir", "/", "--shell", "/usr/sbin/nologin"]
        in_root(root, "useradd", *syslog, "syslog")


def dev_tools(root: Path) -> Iterator[str]:
    """Yield the files of the compilers and build tools in the rootfs, sorted, as absolute paths."""
    names: set[str] = set()
    for listing in (root / "var/lib/dpkg/info").glob("*.list"):
        if DEV_TOOLS.fullmatch(listing.stem.partition(":")[0]):
            names.update(listing.read_text().split("\n"))
    for name in sorted(names):
        path = root / name.lstrip("/")
        if name and (path.is_symlink() or path.is_file()):
            yield name


def package_date(root: Path) -> int:
    """Return when the newest of the installed packages was made, in seconds since 1970.

    dpkg keeps the times of the files it unpacks, so that the same packages give the same date.
    """
    documents = (root / "usr/share/doc").glob("*/c*")  # copyright and the changelogs
    return max((int(path.stat().st_mtime) for path in documents if path.is_file()), default=0)


def trim(root: Path, date: int, *, real: bool) -> None:
    """Remove what no stemcell needs and what differs between two builds from the same packages."""
    for pattern in TRIMMED if real else (*TRIMMED, *STAND_IN_TRIMMED):
        for path in list(root.glob(pattern)):
            remove(path)
    for path in list((root / "usr/share/doc").rglob("*")):
        # The licences have to stay with the programs.
        if (path.is_file() or path.is_symlink()) and path.name != "copyright":
            path.unlink()
    for path in (root / "var/log").rglob("*"):
        if path.is_file():
            path.unlink()
    for sources in (root / "etc/apt").glob("sources.list*"):
        if sources.is_file():
            sources.write_text(re.sub(r"://[^/@\s]+@", "://", sources.read_text()))
    shadow = root / "etc/shadow"
    lines = [line.split(":") for line in shadow.read_text().splitlines()]
    days = str(date // 86400)
    shadow.write_text("".join(f"{name}:*:{days}:{':'.join(rest)}\n" for name, _, _, *rest in lines))


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
