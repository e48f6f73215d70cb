"""The disk image of a guest host: Debian as its users have it, with all that the CPI needs.

It has a kernel, systemd, udev, AppArmor, OpenSSH, Docker beside containerd, and libvirt with QEMU;
also ufw and firewalld, which are off. The locked Python packages are in it, so that a guest needs
no network. It is made once from the sources that apt has on this host, and cached below
$XDG_CACHE_HOME (default ~/.cache), for all checkouts. Needs root and mmdebstrap.
"""

import fcntl
import hashlib
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testing.repository import REPOSITORY
from testing.stemcells import stemcell_host
from testing.stemcells.stemcell_rootfs import BuildError, bootstrap, in_root, put, run

SUITES = {"trixie": "3.13", "bookworm": "3.11"}  # with the Python of each
CHECKOUT = "/root/bosh-containerd-cpi"  # where the guest has the checkout and its .venv

_FILES = Path(__file__).parent / "guest_files"
_WHEELS = "opt/wheels"
_UNUSED_SECONDS = 7 * 86400
_SIZE = 24 << 30  # bytes, of a sparse file: it takes only what is written
_PACKAGES = (
    *("apparmor", "apparmor-utils", "busybox-static", "ca-certificates", "curl", "dbus", "gdisk"),
    *("iputils-ping", "kmod", "less", "linux-image-amd64", "make", "nftables", "openssh-server"),
    *("procps", "python3-pip", "rsync", "systemd-sysv", "udev", "udisks2", "zstd"),
)
# What one package has in some suites, and two in others.
_OF_SUITE = {"trixie": ("docker-cli",), "bookworm": ()}
# Installed, and off until a test starts it.
_OFF = ("docker-registry.service", "firewalld.service", "ufw.service")
_ON = ("docker.service", "containerd.service", "libvirtd.socket", "ssh.service")
# What would use the network, or the disk in the midst of a test.
_MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"),
    *("fstrim.timer", "systemd-networkd-wait-online.service", "systemd-timesyncd.service"),
)
# Packages of TEST_PACKAGES (Makefile) that only tests of the source need.
_SOURCE_ONLY = ("golang-github-containerd-containerd-dev",)
_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")


@dataclass(frozen=True)
class GuestImage:
    """The files of an image, in one folder."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The root file system, an ext4 without a partition table."""
        return self.folder / "root.raw"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"

    @property
    def key(self) -> Path:
        """The private key of root's access by ssh."""
        return self.folder / "key"

    @property
    def host_key(self) -> str:
        """The public key of the guest's ssh server."""
        return (self.folder / "host_key").read_text().strip()


def guest_image(suite: str = "trixie") -> GuestImage:
    """Return the image of a suite, making it unless it is cached. Raises BuildError.

    The folder's name holds a hash of the recipe. Images that were not used for a week are removed:
    another checkout may have another recipe.
    """
    image = _image(suite)
    image.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(image.folder.with_name(f"guest-{suite}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be making it
        if not image.disk.exists():
            # With its own mounts: mmdebstrap leaves those of the guest when it is killed.
            argv = [sys.executable, "-m", "testing.hosts.guest_image", suite]
            if stemcell_host.run_worker(argv):
                raise BuildError(f"the image of {suite} could not be made")
        os.utime(image.folder)
    return image


def _image(suite: str) -> GuestImage:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return GuestImage(Path(caches, "bosh-containerd-cpi", f"guest-{suite}-{_recipe(suite)}"))


def _build(suite: str) -> None:
    """Make the image of a suite, and remove what is old. Raises BuildError."""
    image = _image(suite)
    cache = image.folder.parent
    for old in cache.glob(f"guest-{suite}-*"):
        if "-new-" in old.name or old.stat().st_mtime < time.time() - _UNUSED_SECONDS:
            stemcell_host.remove_folder(old)
    work = Path(tempfile.mkdtemp(prefix=f"guest-{suite}-new-", dir=cache))
    try:
        _make(work, suite)
        os.rename(work / "image", image.folder)
    finally:
        stemcell_host.remove_folder(work)


def _recipe(suite: str) -> str:
    """Return a short hash of everything that an image is made from, except Debian's packages."""
    sha = hashlib.sha256("\n".join((suite, *_packages(suite))).encode())
    files = [path for path in _FILES.rglob("*") if path.is_file()]
    for path in sorted([*files, Path(__file__), REPOSITORY / "requirements.lock"]):
        sha.update(f"\n{path.relative_to(REPOSITORY)}\n".encode() + path.read_bytes())
    return sha.hexdigest()[:16]


def _packages(suite: str) -> list[str]:
    """Return Debian's packages: those that `make setup` and `make test-packages` install, more."""
    argv = ["make", "--no-print-directory", "-C", str(REPOSITORY), "-n", "packages"]
    words = run([*argv, "test-packages"]).split()
    named = {word for word in words if not word.startswith(("-", "tools/"))}
    named |= {*_PACKAGES, *_OF_SUITE[suite], "firewalld", "ufw"}
    return sorted(named - {*_SOURCE_ONLY})


def _make(work: Path, suite: str) -> None:
    """Make the image in the folder `image` of `work`. Raises BuildError."""
    if os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        raise BuildError("a guest's image needs root and mmdebstrap")
    start = time.monotonic()

    def report(message: str) -> None:
        elapsed = time.monotonic() - start
        print(f"[{elapsed:5.1f} s] {message}", file=sys.stderr, flush=True)

    work.chmod(0o755)  # apt has a user of its own
    root, folder = work / "root", work / "image"
    folder.mkdir()
    report(f"making a guest of Debian {suite}")
    argv = ["mmdebstrap", "--mode=root", "--variant=important", "--format=directory"]
    argv += [f"--include={','.join(_packages(suite))}", "--dpkgopt=force-unsafe-io"]
    argv += [f"--aptopt={option}" for option in stemcell_host.apt_options()]
    for name in ("etc", "usr"):
        argv.append(f"--setup-hook=copy-in {shlex.quote(str(_FILES / 'early' / name))} /")
    bootstrap([*argv, suite, str(root), *stemcell_host.mirrors(suite)], report)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "guest", "-f", str(folder / "key")])
    _furnish(root, (folder / "key.pub").read_text())
    report("fetching the locked Python packages")
    _put_python(root, SUITES[suite])
    report("writing the disk")
    _write(root, folder)
    size = (folder / "root.raw").stat().st_blocks * 512
    report(f"the image takes {size / 1e9:.1f} GB in {folder.parent.parent}")


def _furnish(root: Path, key: str) -> None:
    """Configure the guest: its network, access by ssh, and which units run."""
    for source in sorted((_FILES / "late").rglob("*")):
        if source.is_file():
            name = str(source.relative_to(_FILES / "late"))
            (root / name).unlink(missing_ok=True)
            put(root, name, source)
    access = root / "root/.ssh"
    access.mkdir(mode=0o700, exist_ok=True)
    (access / "authorized_keys").write_text(key)
    (root / "var/log/journal").mkdir(exist_ok=True)  # keeps the log of earlier boots
    (root / "etc/machine-id").write_text("")
    for sources in _matches(root, "etc/apt/sources.list*"):
        sources.unlink()  # the guest has no network; the host's mirror may have a password in it
    units = {path.name for path in _matches(root, "usr/lib/systemd/system/*")}
    for verb, names in (("disable", _OFF), ("enable", _ON), ("mask", _MASKED)):
        chosen = [name for name in names if name in units]
        in_root(root, "systemctl", verb, *chosen)
    in_root(root, "systemctl", "enable", "systemd-networkd.service")
    in_root(root, "systemctl", "set-default", "multi-user.target")


def _matches(root: Path, pattern: str) -> Iterator[Path]:
    yield from sorted(path for path in root.glob(pattern) if not path.is_dir())


def _put_python(root: Path, version: str) -> None:
    """Put the locked packages into the guest: files for pip, and the checkout's .venv."""
    wheels = root / _WHEELS
    wheels.mkdir(parents=True)
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    argv += ["--python-version", version, *(f"--platform={name}" for name in _PLATFORMS)]
    run([*argv, "--require-hashes", "-r", str(REPOSITORY / "requirements.lock")])
    lock = root / "opt/requirements.lock"
    shutil.copyfile(REPOSITORY / "requirements.lock", lock)
    (root / CHECKOUT.lstrip("/")).mkdir(parents=True)
    venv = f"{CHECKOUT}/.venv"
    in_root(root, "python3", "-m", "venv", venv)
    pip = (f"{venv}/bin/python", "-m", "pip")
    in_root(root, *pip, "install", "--quiet", "--require-hashes", "-r", "/opt/requirements.lock")
    # Made from sources here, since a compiler is slow in emulation.
    for source in wheels.glob("*.tar.gz"):
        build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", f"--wheel-dir=/{_WHEELS}")
        in_root(root, *pip, *build, f"/{_WHEELS}/{source.name}")


def _write(root: Path, folder: Path) -> None:
    """Write the root file system to a disk; the kernel and the public key go beside it."""
    for name, target in (("vmlinuz", "vmlinuz"), ("initrd.img", "initrd")):
        [path] = _matches(root, f"boot/{name}-*")
        shutil.copyfile(path, folder / target)
    shutil.copyfile(root / "etc/ssh/ssh_host_ed25519_key.pub", folder / "host_key")
    form = "${Package} ${Version}\n"
    listed = run(["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", f"--showformat={form}"])
    (folder / "packages.txt").write_text(listed)
    disk = folder / "root.raw"
    with disk.open("wb") as file:
        file.truncate(_SIZE)
    options = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", "-d", str(root)]
    run(["mkfs.ext4", *options, str(disk)])


def main() -> int:
    """Make the image of the suite on the command line, and print its folder."""
    suite = sys.argv[1] if len(sys.argv) > 1 else "trixie"
    try:
        if stemcell_host.in_worker():
            _build(suite)
        else:
            print(guest_image(suite).folder)
    except BuildError as error:
        print(f"guest_image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
