"""The leak check finds what tests leak, and nothing that other programs make."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.hosts.private_host import cgroup_hierarchies
from testing.repository import REPOSITORY
from tests.support.machine_snapshot import Processes, Snapshot, changes, is_of_others, snapshot

BEFORE: Snapshot = {
    "mount": {"/": "(ext4 /dev/sda /)", "/mnt": "(ext4 /dev/sdb /)"},
    "cgroup": {"/sys/fs/cgroup/pids/a": ""},
    "sysctl": {"net/ipv4/ip_forward": "0"},
    "file": {"/run/a": ""},
    "process": {},
}


def changed(category: str, **values: str | None) -> Snapshot:
    """Return a snapshot that differs in one category; None removes a name."""
    mixed = {**BEFORE[category], **values}
    left = {name: value for name, value in mixed.items() if value is not None}
    return {**BEFORE, category: left}


@pytest.mark.parametrize(
    ("after", "lines"),
    [
        (BEFORE, []),
        (changed("mount", **{"/a": "(tmpfs x /)"}), ["new mount: /a (tmpfs x /)"]),
        (changed("mount", **{"/mnt": None}), ["mount is gone: /mnt"]),
        (
            changed("mount", **{"/": "(tmpfs x /)"}),
            ["mount /: was (ext4 /dev/sda /), is (tmpfs x /)"],
        ),
        (
            changed("sysctl", **{"net/ipv4/ip_forward": "1"}),
            ["sysctl net/ipv4/ip_forward: was 0, is 1"],
        ),
        (changed("sysctl", **{"net/ipv4/conf/new/forwarding": "1"}), []),
        (changed("process", **{"12": "sleep 600"}), ["new process: 12 sleep 600"]),
        # Others clean up too; and only the outermost of new folders is listed.
        (changed("cgroup", **{"/sys/fs/cgroup/pids/a": None}), []),
        (changed("file", **{"/run/b": "", "/run/b/c": "", "/run/b/c/d": ""}), ["new file: /run/b"]),
    ],
)
def test_changes(after: Snapshot, lines: list[str]) -> None:
    assert changes(BEFORE, after, lambda _category, _name: False) == lines


def test_what_others_make_is_no_change() -> None:
    after = changed("file", **{"/run/b": "", "/run/c": ""})
    assert changes(BEFORE, after, lambda _category, name: name == "/run/b") == ["new file: /run/c"]


OTHER = "containerd --config /tmp/bosh-cpi-host-abcdefgh/containerd.toml"


@pytest.mark.parametrize(
    ("category", "name", "is_theirs"),
    [
        ("temporary file", "/tmp/bosh-cpi-host-abcdefgh", True),
        ("temporary file", "/tmp/bosh-cpi-host-hgfedcba", False),
        ("cgroup", f"{cgroup_hierarchies()[0]}/bosh-cpi-host-abcdefgh/x", True),
        ("cgroup", f"{cgroup_hierarchies()[0]}/bosh-cpi-host-hgfedcba/x", False),
        ("file", "/run/containerd/task/bosh-cpi-host-abcdefgh", True),
        ("file", "/run/netns/a", False),  # too short to be anything's own name
        ("mount", "/tmp/bosh-cpi-host-abcdefgh", False),  # as this process sees it: ours
        ("network link", "lo", False),
    ],
)
def test_what_another_process_names_is_of_others(category: str, name: str, is_theirs: bool) -> None:
    assert is_of_others(Processes(others=[OTHER]), category, name) is is_theirs


def test_processes_of_a_run_have_its_folder_in_their_environment(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    command = ["sleep", "600"]
    with (
        subprocess.Popen(command, env={**os.environ, "RUN": str(run)}) as ours,
        subprocess.Popen(command, cwd=tmp_path) as other,
    ):
        try:
            processes = Processes.of_machine(run)
            listed = snapshot(run, REPOSITORY)
        finally:
            ours.kill()
            other.kill()
    assert processes.ours == {str(ours.pid): "sleep 600"} == listed["process"]
    assert processes.others_use(str(tmp_path))
    assert not processes.others_use(str(run))


# Whole runs


def pytest_run(folder: Path, test: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run a module of tests with only the leak check."""
    (folder / "test_it.py").write_text(test)
    words = ["-p", "tests.support.leak_check", "-c", "/dev/null", "--rootdir", str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words, *options, str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def test_a_run_that_leaves_nothing_passes(tmp_path: Path) -> None:
    test = """
import pytest, shutil, tempfile
@pytest.fixture(scope="session")
def folder():
    path = tempfile.mkdtemp()
    yield path
    shutil.rmtree(path)
def test_it(folder): pass
"""
    done = pytest_run(tmp_path, test)
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout
    assert "0 selected" in pytest_run(tmp_path, test, "-k", "nosuch").stdout
    assert pytest_run(tmp_path, test, "--collect-only").returncode == 0


def test_a_run_is_checked_after_its_first_failure_and_not_without_tests(tmp_path: Path) -> None:
    test = "import tempfile\ndef test_it(): assert not tempfile.mkdtemp()\ndef test_more(): pass"
    (tmp_path / "conftest.py").write_text(IMPATIENT)
    assert "2 failed" in pytest_run(tmp_path, test, "-x").stdout.splitlines()[-1]
    assert "1 error" in pytest_run(tmp_path, "import nosuch").stdout.splitlines()[-1]


IMPATIENT = "import tests.support.leak_check as check; check._SETTLE_SECONDS = 0"


def leaking(folder: Path, leak: str) -> str:
    """Run a test that leaks something; return the output."""
    (folder / "conftest.py").write_text(IMPATIENT)
    done = pytest_run(folder, f"import os, subprocess, tempfile\ndef test_it(): {leak}")
    assert (done.returncode, "1 failed, 1 passed" in done.stdout) == (1, True), done.stdout
    return done.stdout


def test_a_run_that_leaves_a_file_fails(tmp_path: Path) -> None:
    assert "/left-" in leaking(tmp_path, "tempfile.mkdtemp(prefix='left-')")


def test_a_run_that_leaves_a_process_fails(tmp_path: Path) -> None:
    output = leaking(tmp_path, "subprocess.Popen(['sleep', '600'], start_new_session=True)")
    pids = set(re.findall(r"new process: (\d+) sleep 600", output))  # the summary says it again
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    assert len(pids) == 1


NAME = f"leak-check-{os.getpid()}"


@pytest.fixture
def left_by_tests() -> Iterator[None]:
    namespaces = Path("/run/netns")
    has_namespaces = namespaces.exists()
    yield
    (namespaces / NAME).unlink(missing_ok=True)
    if namespaces.exists() and not has_namespaces:
        namespaces.rmdir()
    for hierarchy in cgroup_hierarchies():
        if (hierarchy / NAME).exists():
            (hierarchy / NAME).rmdir()


@pytest.mark.integration
@pytest.mark.usefixtures("left_by_tests")
@pytest.mark.parametrize(
    ("leak", "message"),
    [
        (f"os.mkdir('{cgroup_hierarchies()[0]}/{NAME}')", f"new cgroup: /sys/.*/{NAME}"),
        (f"os.system('ip netns add {NAME}')", "new mount: /run/netns"),
        ("os.system(f'mount -t tmpfs x {os.path.dirname(__file__)}')", "new mount: .* .tmpfs x "),
    ],
    ids=["cgroup", "network namespace", "mount"],
)
def test_a_run_that_leaves_what_takes_root_fails(tmp_path: Path, leak: str, message: str) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    assert re.search(message, leaking(tmp_path, leak))
    assert Path("/proc/self/mountinfo").read_text() == mounts


def test_a_killed_run_is_tidied_up_by_the_next(tmp_path: Path) -> None:
    test = """
import os, signal, tempfile, time
def test_it():
    folder = tempfile.mkdtemp()
    os.utime(tempfile.gettempdir(), (0, 0))  # as if it were old
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = pytest_run(tmp_path, test, "-s")
    left = Path(re.findall(r"/\S+/bosh-cpi-tests-\w+/\w+", killed.stdout)[0])
    assert left.exists()
    assert pytest_run(tmp_path, "def test_it(): pass").returncode == 0
    assert not left.parent.exists()
