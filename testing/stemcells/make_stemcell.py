"""Make a complete warden stemcell from Debian's packages.

A stemcell is the root file system that every BOSH VM starts from. BOSH publishes ones made from
Ubuntu; this makes one on your machine, in half a minute, from the mirror your apt already uses:

    sudo python3 -m testing.stemcells.make_stemcell --init systemd --output stemcell.tgz

Without --agent it holds a small stand-in for BOSH's agent (testing/agent/stand_in_agent.py), enough
to try a CPI: it answers ping and mounts disks, but runs no jobs. With an agent and a monit of your
own it runs releases:

    sudo python3 -m testing.stemcells.make_stemcell --init systemd \\
        --agent ./bosh-agent --monit ./monit \\
        --extra ./bosh-blobstore-dav=/var/vcap/bosh/bin/bosh-blobstore-dav \\
        --include build-essential --name my-stemcell --version 1

`bosh create-env` and `bosh upload-stemcell` take the result. The agent is
https://github.com/cloudfoundry/bosh-agent built for Linux; it needs monit 5.2.5, the release that
BOSH's own stemcells build, since later ones refuse its commands. Releases that are compiled on
their VMs need --include build-essential.

It needs root, mmdebstrap, and 4 GB of memory to spare or else about 1 GB in /var/tmp; set TMPDIR to
work in another folder, which must allow programs and device nodes. Packages come from the sources
that apt has on this host, through its proxy. The same packages and files, compressed by the same
program (pigz where there is one, else gzip), give the same bytes.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from testing.stemcells import stemcell_host
from testing.stemcells.stemcell_rootfs import (
    BuildError,
    Plan,
    bootstrap,
    furnish,
    in_root,
    mmdebstrap_argv,
    package_date,
    run,
    trim,
)

DISK_MIB = 5120  # what BOSH's own warden stemcells name as the size of their disk
ARCHITECTURES = {"amd64": "x86_64", "arm64": "arm64"}
MEMBERS = ("stemcell.MF", "packages.txt", "dev_tools_file_list.txt", "image")
DEV_TOOLS_LIST = "var/vcap/bosh/etc/dev_tools_file_list"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, or make a stemcell for another program; return the exit status.

    A separate process does the work, with its own mounts.
    """
    args = parse(argv)
    try:
        plan = plan_from(args)
        stemcell_host.check(args.output)
        if stemcell_host.in_worker():
            return work(plan, args)
        words = list(sys.argv[1:] if argv is None else argv)
        return stemcell_host.run_worker(
            [sys.executable, "-m", "testing.stemcells.make_stemcell", *words]
        )
    except BuildError as error:
        print(f"make_stemcell: {error}", file=sys.stderr)
        return 1


def work(plan: Plan, args: argparse.Namespace) -> int:
    """Make the stemcell, in the worker; return its exit status. Raises BuildError."""
    os.umask(0o022)
    signal.signal(signal.SIGTERM, interrupt)
    start = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - start:5.1f} s] {message}", file=sys.stderr, flush=True)

    try:
        if args.agent and not args.monit:
            say("warning: without --monit the agent starts, but runs no jobs and tells no state")
        with stemcell_host.work_folder() as folder:
            make(folder, plan, args, say)
    except KeyboardInterrupt:
        say("interrupted; nothing was written")
        return 130
    return 0


def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """End as Ctrl-C does, so that everything is cleaned up."""
    raise KeyboardInterrupt


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exit with status 2 and a usage message if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python3 -m testing.stemcells.make_stemcell",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--init", required=True, choices=("systemd", "runit"), help="the VM's first process")
    add("--agent", type=Path, metavar="FILE", help="BOSH's agent (default: our stand-in)")
    add("--monit", type=Path, metavar="FILE", help="monit 5.2.5, which the agent starts jobs with")
    add(
        "--extra",
        action="append",
        default=[],
        metavar="FILE=DEST",
        help="also put FILE at DEST (repeatable)",
    )
    add(
        "--include",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="also install this package, or these, separated by commas (repeatable)",
    )
    add("--suite", default="bookworm", help="Debian's release (default: %(default)s)")
    add(
        "--mirror",
        action="append",
        default=[],
        metavar="LINE",
        help="a line of sources.list to install from (repeatable; default: this host's own)",
    )
    add("--name", help="the stemcell's name (default: like BOSH names its own)")
    add("--version", help="its version (default: 0.DATE, the date of its newest package)")
    add("--output", type=Path, metavar="FILE.tgz", help="default: NAME-VERSION.tgz, here")
    return parser.parse_args(argv)


def plan_from(args: argparse.Namespace) -> Plan:
    """Check the arguments and make a plan of them; raises BuildError."""
    extra = tuple(split_extra(text) for text in args.extra)
    for path in filter(None, (args.agent, args.monit, *(source for source, _ in extra))):
        if not path.is_file():
            raise BuildError(f"there is no file {path}")
    for path in filter(None, (args.agent, args.monit)):
        if not os.access(path, os.X_OK):
            raise BuildError(f"{path} is not executable")
    if args.monit and not args.agent:
        raise BuildError("--monit needs --agent: the stand-in runs no jobs")
    if not re.fullmatch(r"[a-z][a-z0-9.-]*", args.suite):
        raise BuildError(f"{args.suite!r} is not the name of a suite, like bookworm")
    include = tuple(name for text in args.include for name in text.split(",") if name)
    mirrors = tuple(args.mirror) or tuple(stemcell_host.mirrors(args.suite))
    return Plan(args.init, args.suite, args.agent, args.monit, extra, include, mirrors)


def split_extra(text: str) -> tuple[Path, str]:
    """Read one --extra; raises BuildError."""
    source, _, name = text.rpartition("=")
    if not source or not name.startswith("/") or name.endswith("/") or ".." in Path(name).parts:
        raise BuildError(f"--extra {text}: expected FILE=/PATH/IN/THE/STEMCELL")
    return Path(source), name


def make(work: Path, plan: Plan, args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Build the stemcell below `work` and move it to its output; raises BuildError."""
    root, stage = work / "root", work / "stage"
    stage.mkdir()
    agent = "BOSH's agent" if plan.agent else "our stand-in agent"
    say(f"making a {plan.suite} stemcell with {plan.init} and {agent}")
    bootstrap(mmdebstrap_argv(plan, root, stemcell_host.apt_options()), say)
    date = int(os.environ.get("SOURCE_DATE_EPOCH") or package_date(root))
    version = args.version or time.strftime("0.%Y%m%d", time.gmtime(date))
    say("adding accounts, services and the agent")
    furnish(root, plan, version)
    (stage / "packages.txt").write_text(in_root(root, "dpkg-query", "--list"))
    shutil.copyfile(root / DEV_TOOLS_LIST, stage / "dev_tools_file_list.txt")
    trim(root, date, real=plan.agent is not None)
    say("packing the image")
    sha1 = pack(root, ["."], stage / "image", date=date)
    distro = os_release(root).get("ID", "debian")
    name = args.name or default_name(plan, distro)
    content = manifest(name, version, sha1, f"{distro}-{plan.suite}", architecture())
    (stage / "stemcell.MF").write_text(to_yaml(content))
    output = args.output or Path(f"{name}-{version}.tgz")
    publish(stage, output, date=date)
    image, whole = (stage / "image").stat().st_size, output.stat().st_size
    say(f"{output}: {whole / 1e6:.1f} MB, image {image / 1e6:.1f} MB, {name}/{version}")


def default_name(plan: Plan, distro: str) -> str:
    """Return a name like those of BOSH's own stemcells, with the init system."""
    agent = "go_agent" if plan.agent else "stand_in_agent"
    return f"bosh-warden-boshlite-{distro}-{plan.suite}-{plan.init}-{agent}"


def os_release(root: Path) -> dict[str, str]:
    """Return the rootfs's /etc/os-release."""
    text = (root / "usr/lib/os-release").read_text()
    return {key: value.strip('"') for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)}


def architecture() -> str:
    """Return BOSH's name for this machine's architecture; raises BuildError if it has none."""
    name = run(["dpkg", "--print-architecture"]).strip()
    if name not in ARCHITECTURES:
        raise BuildError(f"BOSH has no agent for {name}")
    return ARCHITECTURES[name]


def manifest(
    name: str, version: str, sha1: str, operating_system: str, architecture: str
) -> dict[str, object]:
    """Return the content of stemcell.MF, with the fields of BOSH's own warden stemcells."""
    return {
        "name": name,
        "version": version,
        "bosh_protocol": 1,
        "api_version": 3,
        "sha1": sha1,
        "operating_system": operating_system,
        "stemcell_formats": ["warden-tar"],
        "cloud_properties": {
            "name": name,
            "version": version,
            "infrastructure": "warden",
            "hypervisor": "boshlite",
            "disk": DISK_MIB,
            "disk_format": "files",
            "container_format": "bare",
            "os_type": "linux",
            "os_distro": operating_system.partition("-")[0],
            "architecture": architecture,
            "root_device_name": "/dev/sda1",
        },
    }


def to_yaml(document: Mapping[str, object], indent: str = "") -> str:
    """Write a mapping of scalars, lists and mappings as YAML, whose scalars may be JSON's."""
    text = "" if indent else "---\n"
    for key, value in document.items():
        if isinstance(value, Mapping):
            text += f"{indent}{key}:\n{to_yaml(value, indent + '  ')}"
        elif isinstance(value, list):
            text += f"{indent}{key}:\n" + "".join(f"{indent}- {json.dumps(v)}\n" for v in value)
        else:
            text += f"{indent}{key}: {json.dumps(value)}\n"
    return text


def publish(stage: Path, output: Path, *, date: int) -> None:
    """Pack the stemcell and move it to its place atomically."""
    handle, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.absolute().parent)
    os.close(handle)
    partial = Path(name)
    try:
        # The image is compressed already: any effort here would be for nothing.
        pack(stage, MEMBERS, partial, date=date, level=1)
        partial.chmod(0o644)
        partial.replace(output)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def pack(folder: Path, names: Sequence[str], output: Path, *, date: int, level: int = 6) -> str:
    """Write a gzip'd tar of `names` below `folder` and return its SHA-1 in hex.

    The bytes depend only on the files: sorted, owners by number, no time after `date` (seconds
    since 1970), no name or time in gzip's header. Raises BuildError.
    """
    tar = ["tar", "--create", f"--directory={folder}", "--sort=name", "--numeric-owner"]
    tar += ["--format=posix", "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"]
    tar += ["--xattrs", "--xattrs-include=security.capability"]  # ping has no setuid bit
    tar += [f"--mtime=@{date}", "--clamp-mtime", "--", *names]
    gzip = ["pigz" if shutil.which("pigz") else "gzip", "--no-name", f"-{level}"]
    sha1 = hashlib.sha1(usedforsecurity=False)
    with (
        output.open("wb") as out,
        subprocess.Popen(tar, stdout=subprocess.PIPE) as first,
        subprocess.Popen(gzip, stdin=first.stdout, stdout=subprocess.PIPE) as second,
    ):
        tarred, zipped = first.stdout, second.stdout
        assert tarred is not None and zipped is not None  # noqa: S101 PT018 (for the type checker)
        tarred.close()  # so that tar ends when gzip does
        while block := zipped.read(1 << 20):
            sha1.update(block)
            out.write(block)
    if first.returncode or second.returncode:
        raise BuildError(f"cannot pack {folder}: tar {first.returncode}, gzip {second.returncode}")
    return sha1.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
