"""A whole host for tests: a QEMU guest of Debian, in emulation, on an overlay of a cached image.

    python3 -m testing.hosts.guest_host [--install] [COMMAND...]
    python3 -m testing.hosts.guest_host --stay --port 2222

boots one, and runs a command or a shell in it, by ssh on loopback, or leaves it up. What it changes
is gone at the end. It has a kernel of its own, systemd as its first process, cgroup v2, AppArmor
and Docker: see testing/hosts/guest_image.py. It reaches no network, not even this host's.
Needs root.
"""

import argparse
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from testing.hosts.guest_image import CHECKOUT, SUITES, GuestImage, guest_image
from testing.patience import wait_for
from testing.repository import REPOSITORY
from testing.stemcells import stemcell_source
from testing.stemcells.stemcell_rootfs import BuildError

BOOT_SECONDS = 900  # until ssh answers; on idle cores it takes about one
COMMAND_SECONDS = 900
MEMORY_MIB = 4096

_STEMCELLS = stemcell_source.CACHE.relative_to(REPOSITORY)


class GuestFailed(Exception):
    """A command in the guest failed; the message has the end of its output."""


class GuestHost:
    """Boot a guest with `with`; then `run` and the like act in it as root.

    memory: in MiB; port: of ssh on 127.0.0.1, else a free one; log: the console's, kept at the end.
    running: connect to the guest that another process has booted, and leave it running.
    """

    def __init__(
        self,
        image: GuestImage,
        *,
        memory: int = MEMORY_MIB,
        port: int = 0,
        log: Path | None = None,
        running: bool = False,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bosh-cpi-guest-"))
        self.console = log or self.folder / "console.log"
        self.port = port or _free_port()
        self.boot_seconds = 0.0
        self._image = image
        self._memory = memory
        self._running = running
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "GuestHost":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(
        self, *argv: str, check: bool = True, seconds: float = COMMAND_SECONDS, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program in the guest. Raises GuestFailed and TimeoutExpired.

        options: of subprocess.run; stdout and stderr are captured unless given.
        """
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        argv_here = [*self.ssh(), shlex.join(argv)]
        done = subprocess.run(argv_here, check=False, timeout=seconds, **options)
        if done.returncode and check:
            words = f"{done.stdout or ''}{done.stderr or ''}"[-4000:]
            raise GuestFailed(f"{shlex.join(argv)}: exit status {done.returncode}:\n{words}")
        return done

    def sh(self, script: str, **options: Any) -> str:
        """Run a shell script in the guest and return its stdout, stripped."""
        return str(self.run("sh", "-euc", script, **options).stdout).strip()

    def start(self, *argv: str, **options: Any) -> "subprocess.Popen[str]":
        """Start a program in the guest, and return the ssh that waits for its end."""
        return subprocess.Popen([*self.ssh(), shlex.join(argv)], text=True, **options)

    def ssh(self, *options: str) -> list[str]:
        """Return the words before a command that runs it in the guest."""
        settings = {
            "BatchMode": "yes",
            "ConnectTimeout": "60",
            "ControlPath": f"{self.folder}/ssh",
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
            "ServerAliveInterval": "30",
            "ServerAliveCountMax": "10",  # emulation on a busy host stalls
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": f"{self.folder}/known_hosts",
        }
        words = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        key = ["-F", "none", "-i", str(self._image.key), "-p", str(self.port)]
        return ["ssh", *key, *words, *options, "root@127.0.0.1"]

    def put_checkout(self, folder: str = CHECKOUT) -> None:
        """Copy this checkout, with its changes, and the cached stemcells to a folder."""
        git = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others"]
        listed = subprocess.run([*git, "--exclude-standard"], check=True, capture_output=True)
        names = [name for name in listed.stdout.decode().split("\0") if name]
        there = self.run("ls", f"{folder}/{_STEMCELLS}", check=False).stdout.split()
        cached = [path.name for path in stemcell_source.CACHE.glob("*.tgz")]
        names += [str(_STEMCELLS / name) for name in cached if name not in there]
        present = [name for name in names if os.path.lexists(REPOSITORY / name)]
        archive = self.folder / "checkout.tar"
        tar = ["tar", "--create", f"--file={archive}", f"--directory={REPOSITORY}"]
        chosen = "\0".join(present).encode()
        subprocess.run([*tar, "--null", "--files-from=-"], input=chosen, check=True)
        self.put_archive(archive, folder)

    def put_archive(self, archive: Path, folder: str) -> None:
        """Unpack a tar archive of this host into a folder of the guest."""
        self.run("mkdir", "-p", folder)
        with archive.open("rb") as file:
            self.run("tar", "-x", "--no-same-owner", "-C", folder, stdin=file)

    def install(self, folder: str = CHECKOUT, log: Path | None = None) -> float:
        """Run `make install` in a checkout of the guest; return how many seconds it took."""
        start = time.monotonic()
        done = self.run("make", "-C", folder, "install", seconds=1800)
        if log:
            log.write_text(done.stdout + done.stderr)
        return time.monotonic() - start

    def reboot(self) -> float:
        """Reboot the guest in order, and return how many seconds it took until ssh answered."""
        start, boot = time.monotonic(), self._boot_id()
        self.run("systemctl", "reboot", check=False)
        self._close_ssh()
        self._await(lambda: self._boot_id() not in ("", boot), "the guest to reboot")
        self._open_ssh()
        return time.monotonic() - start

    def wait(self) -> None:
        """Wait until the guest has ended, by itself."""
        if self._process is not None:
            self._process.wait()

    def console_tail(self, size: int = 4000) -> str:
        """Return the end of what the guest wrote to its console."""
        text = self.console.read_bytes() if self.console.exists() else b""
        return text[-size:].decode(errors="replace")

    def stop(self) -> None:
        """End the guest and remove its files."""
        self._close_ssh()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.folder)

    def _start(self) -> None:
        host = f"[127.0.0.1]:{self.port} {self._image.host_key}\n"
        (self.folder / "known_hosts").write_text(host)
        start = time.monotonic()
        if not self._running:
            self._boot()
        self._await(self._boot_id, "ssh in the guest")
        self._open_ssh()
        self.boot_seconds = time.monotonic() - start

    def _boot(self) -> None:
        disk = self.folder / "disk.qcow2"
        base = ["-F", "raw", "-b", str(self._image.disk)]
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", *base, str(disk)]
        subprocess.run(argv, check=True)
        with open(self.folder / "qemu.log", "wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self._qemu(disk)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we stop it after the cleanup
            )

    def _qemu(self, disk: Path) -> list[str]:
        """Return QEMU's command: two CPUs, a disk, one card, and no access to the network.

        Five-level page tables and nested virtualization only cost time in emulation.
        """
        forward = f"hostfwd=tcp:127.0.0.1:{self.port}-:22"
        kernel = "root=/dev/vda rw console=ttyS0 net.ifnames=1 panic=10"
        return [
            *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35"),
            *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off,svm=off"),
            *("-smp", "2", "-m", str(self._memory), "-serial", f"file:{self.console}"),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd)),
            *("-append", kernel, "-device", "virtio-rng-pci"),
            *("-drive", f"file={disk},if=none,id=root,cache=unsafe,discard=unmap"),
            *("-device", "virtio-blk-pci,drive=root", "-device", "virtio-net-pci,netdev=user"),
            *("-netdev", f"user,id=user,restrict=on,{forward}"),
        ]

    def _boot_id(self) -> str:
        """Return what is different after each boot; "" while ssh does not answer."""
        argv = [*self.ssh("-o", "ControlPath=none"), "cat /proc/sys/kernel/random/boot_id"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
        except subprocess.TimeoutExpired:  # it may be lost in a guest that was reset meanwhile
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    def _await(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until a condition holds. Raises GuestFailed, also when QEMU ends."""

        def holds() -> Any:
            if self._process is not None and self._process.poll() is not None:
                log = (self.folder / "qemu.log").read_text(errors="replace")
                raise GuestFailed(f"QEMU ended while waiting for {what}: {log}")
            return condition()

        try:
            wait_for(holds, what, BOOT_SECONDS)
        except TimeoutError as error:
            raise GuestFailed(f"{error}; its console:\n{self.console_tail()}") from None

    def _open_ssh(self) -> None:
        """Open the connection that all commands share: a new one takes seconds in emulation."""
        options = ("-f", "-N", "-o", "ControlMaster=yes")
        with open(self.folder / "ssh.log", "ab") as log:
            subprocess.run(
                self.ssh(*options), stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True,
                timeout=300,
            )  # fmt: skip

    def _close_ssh(self) -> None:
        argv = self.ssh("-O", "exit")
        subprocess.run(argv, capture_output=True, check=False, timeout=60)
        (self.folder / "ssh").unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Boot a guest and run the command of the command line in it, or a shell."""
    parser = argparse.ArgumentParser(prog="guest_host", description=__doc__.split("\n")[0])
    parser.add_argument("--suite", choices=SUITES, default="trixie", help="Debian's (%(default)s)")
    parser.add_argument("--memory", type=int, default=MEMORY_MIB, metavar="MIB")
    parser.add_argument("--port", type=int, default=0, help="of ssh on 127.0.0.1 (a free one)")
    parser.add_argument("--checkout", action="store_true", help=f"copy this checkout to {CHECKOUT}")
    parser.add_argument("--install", action="store_true", help="the same, and run `make install`")
    parser.add_argument("--stay", action="store_true", help="leave it up until Ctrl-C or SIGTERM")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="with its arguments (a shell)")
    options = parser.parse_args(argv)

    def say(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        image = guest_image(options.suite)
        with ExitStack() as undo:
            guest = undo.enter_context(GuestHost(image, memory=options.memory, port=options.port))
            say(f"ready after {guest.boot_seconds:.0f} s; the console is {guest.console}")
            say(shlex.join(guest.ssh()))
            if options.checkout or options.install:
                guest.put_checkout()
            if options.install:
                say(f"installed in {guest.install():.0f} s")
            if options.stay:
                guest.wait()
                return 0
            terminal = ["-t"] if sys.stdin.isatty() else []
            command = [shlex.join(options.command)] if options.command else []
            return subprocess.run([*guest.ssh(*terminal), *command], check=False).returncode
    except (BuildError, GuestFailed, subprocess.SubprocessError) as error:
        say(f"guest_host: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
