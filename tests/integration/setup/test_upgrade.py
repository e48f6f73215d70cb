"""tools/install twice into one folder, while calls run: an upgrade fails none of them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from testing.hosts.private_host import PrivateHost
from testing.patience import PATIENCE, wait_for
from testing.repository import REPOSITORY
from tests.support.processes import ended

REQUEST = json.dumps(
    {"method": "has_disk", "arguments": ["containerd-disk-0"], "context": {}, "api_version": 2}
)


class Installation:
    """A folder that the CPI is installed in, and what belongs to / below another folder."""

    def __init__(self, folder: Path) -> None:
        self.prefix = folder / "opt"
        self.root = folder / "root"
        self.config = self.root / "etc/bosh-containerd-cpi/cpi.json"

    def install(self, **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [REPOSITORY / "tools/install", self.prefix],
            cwd=REPOSITORY,
            env={**os.environ, "ROOT": str(self.root), **env},
            check=False,
            capture_output=True,
            text=True,
            timeout=5 * PATIENCE,
        )

    @property
    def current(self) -> str:
        return os.readlink(self.prefix / "current")

    @property
    def releases(self) -> list[str]:
        return sorted(f"releases/{path.name}" for path in (self.prefix / "releases").iterdir())

    @property
    def program(self) -> str:
        return str(self.root / "usr/local/bin/cpi")


class Calls:
    """Calls of a program, one after the other, until `stop`; `failed` has what went wrong."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.done, self.failed = 0, list[str]()
        self._argv = argv
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            done = subprocess.run(
                self._argv, input=REQUEST, capture_output=True, text=True, check=False
            )
            if '"result": false, "error": null' not in done.stdout:
                self.failed.append(f"{done.returncode} {done.stdout}{done.stderr}")
            self.done += 1

    def more(self) -> None:
        """Wait until some more calls have started and ended."""
        enough = self.done + 3
        wait_for(lambda: self.done >= enough, "more calls")

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


class SocketUnit:
    """A service whose socket this process holds, as systemd does; it can be restarted."""

    def __init__(self, host: PrivateHost, program: Path, config: Path, path: Path) -> None:
        self._host = host
        self._argv = [str(program), "--config", str(config), "serve"]
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(512)
        self._process = self._started()

    def _started(self) -> "subprocess.Popen[str]":
        script = 'exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        return subprocess.Popen(
            self._host.enter("sh", "-c", script, "sh", *self._argv),
            stdin=self._listening.fileno(),
            stderr=subprocess.DEVNULL,
            text=True,
        )

    @property
    def release(self) -> str:
        """The release that the service runs from."""
        words = Path(f"/proc/{self._pid()}/cmdline").read_text().split("\0")
        return "/".join(Path(words[0]).parts[-4:-2])

    def _pid(self) -> int:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return int(wait_for(children.read_text, "the service's process"))

    def restart(self) -> None:
        self.stop()
        self._process = self._started()

    def stop(self) -> None:
        os.kill(self._pid(), signal.SIGTERM)
        self._process.wait(PATIENCE)

    def close(self) -> None:
        with ended(self._process):
            self.stop()
        self._listening.close()


@pytest.fixture(scope="module")
def installed(host: PrivateHost) -> Iterator[Installation]:
    installation = Installation(host.folder / "installed")
    installation.config.parent.mkdir(parents=True)
    shutil.copy(host.write_config("installed.json"), installation.config)
    # Before there were releases, an environment was there, and a link to it.
    words = [sys.executable, "-m", "venv", "--without-pip", str(installation.prefix)]
    subprocess.run(words, check=True, timeout=PATIENCE)
    link = Path(installation.program)
    link.parent.mkdir(parents=True)
    link.symlink_to(installation.prefix / "bin/cpi")
    done = installation.install()
    assert done.returncode == 0, done.stderr
    yield installation
    shutil.rmtree(installation.prefix)


def test_an_installation_answers_and_an_upgrade_fails_no_call(
    installed: Installation, host: PrivateHost
) -> None:
    first = installed.current
    assert installed.releases == [first]
    assert os.readlink(installed.program) == str(installed.prefix / "current/bin/cpi")
    assert (installed.prefix / "pyvenv.cfg").exists()  # for calls that run there
    # Older ones: a process runs in the second, such as a service that was not restarted.
    for release in ("releases/0-unused", "releases/1-used"):
        (installed.prefix / release).mkdir()
    word = f"{installed.prefix}/releases/1-used/bin/bosh-cpi"
    running = subprocess.Popen([sys.executable, "-c", "input()", word], stdin=subprocess.PIPE)
    path = host.folder / "upgraded.sock"
    bosh_cpi = installed.prefix / "current/bin/bosh-cpi"
    service = SocketUnit(host, bosh_cpi, installed.config, path)
    client = host.folder / "upgraded.json"
    client.write_text(json.dumps({"endpoint": f"unix://{path}"}))
    # As they run everywhere: once through the link, once through the service.
    calls = [
        Calls(host.enter(installed.program, "-c", str(installed.config))),
        Calls(host.enter(installed.program, "-c", str(client))),
    ]
    try:
        for loop in calls:
            loop.more()
        assert service.release == first
        done = installed.install()
        assert done.returncode == 0, done.stderr
        second = installed.current
        assert second != first
        for loop in calls:  # with the old service, which starts workers of its own release
            loop.more()
        assert f"{installed.prefix}/releases/1-used stays: a process runs in it" in done.stdout
        assert installed.releases == ["releases/1-used", first, second]
        assert os.readlink(installed.prefix / "bin") == "current/bin"
        assert not (installed.prefix / "pyvenv.cfg").exists()
        service.restart()
        for loop in calls:
            loop.more()
        assert service.release == second
    finally:
        for loop in calls:
            loop.stop()
        service.close()
        running.communicate(b"\n", timeout=PATIENCE)
    assert [loop.failed for loop in calls] == [[], []]
    assert min(loop.done for loop in calls) >= 9


def test_an_upgrade_without_a_registry_leaves_all_as_it_was(installed: Installation) -> None:
    before = (installed.current, installed.releases)
    empty = installed.prefix.parent / "empty"
    done = installed.install(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(empty), PIP_NO_CACHE_DIR="1")
    assert done.returncode == 1
    assert "what was installed before is unchanged" in done.stderr
    assert (installed.current, installed.releases) == before
    assert subprocess.run([installed.program, "--version"], check=True).returncode == 0
