"""What is read from a stemcell's root file system, and that nothing leads out of it."""

import ctypes
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from stemcell_convert import inroot
from stemcell_convert.facts import WARDEN_SETTINGS, RootfsFacts, read_facts
from stemcell_convert.inroot import Root
from stemcell_convert.stemcell_errors import StemcellError

ELF = {"amd64": 0x3E, "arm64": 0xB7}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a root file system with a shell and nothing to boot."""
    root = tmp_path / "root"
    _put(root, "bin/sh", _elf("amd64"))
    _put(root, "etc/os-release", b'ID=debian\nVERSION_ID="12"\n')
    return root


def _put(root: Path, path: str, data: bytes = b"") -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def _elf(architecture: str) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(11) + ELF[architecture].to_bytes(2, "little")


def _facts(root: Path) -> RootfsFacts:
    with Root(root) as opened:
        return read_facts(opened, "a stemcell")


def _agent(**linux: object) -> bytes:
    sources = [{"Type": "File", "SettingsPath": "/var/vcap/bosh/mine.json"}]
    document = {
        "Platform": {"Linux": linux},
        "Infrastructure": {"Settings": {"Sources": sources}},
    }
    return json.dumps(document).encode()


def test_systemd(tree: Path) -> None:
    _put(tree, "lib/systemd/systemd")
    (tree / "sbin").mkdir()
    (tree / "sbin/init").symlink_to("/lib/systemd/systemd")
    facts = _facts(tree)
    assert (facts.init, facts.command) == ("systemd", ("/sbin/init",))
    assert facts.os_release["VERSION_ID"] == "12"
    assert facts.settings == WARDEN_SETTINGS


def test_runit(tree: Path) -> None:
    _put(tree, "usr/sbin/runsvdir-start")
    assert _facts(tree).command == ("/usr/sbin/runsvdir-start",)


@pytest.mark.parametrize(
    ("linux", "init"),
    [
        ({"BindMountPersistentDisk": True, "SkipDiskSetup": True}, "runit"),
        ({"DevicePathResolutionType": "virtio", "UseMonitIptablesFirewall": True}, "systemd"),
    ],
    ids=["warden", "machine"],
)
def test_jammy_has_both_inits(tree: Path, linux: dict[str, object], init: str) -> None:
    _put(tree, "lib/systemd/systemd")
    _put(tree, "usr/sbin/runsvdir-start")
    _put(tree, "var/vcap/bosh/agent.json", _agent(**linux))
    facts = _facts(tree)
    assert (facts.init, facts.runit) == (init, True)
    assert facts.agent["Platform"] == {"Linux": linux}


def test_the_agents_word_decides(tree: Path) -> None:
    _put(tree, "lib/systemd/systemd")
    _put(tree, "usr/sbin/runsvdir-start")
    _put(
        tree,
        "var/vcap/bosh/agent.json",
        _agent(ServiceManager="systemd", BindMountPersistentDisk=True),
    )
    facts = _facts(tree)
    assert facts.init == "systemd"
    assert facts.settings == "/var/vcap/bosh/mine.json"


def test_nothing_to_boot(tree: Path) -> None:
    with pytest.raises(StemcellError, match="a stemcell: found neither systemd nor runit"):
        _facts(tree)


def test_a_broken_agent_json_is_named(tree: Path) -> None:
    _put(tree, "var/vcap/bosh/agent.json", b"{")
    with pytest.raises(StemcellError, match=r"agent\.json in it is not JSON"):
        _facts(tree)


@pytest.mark.parametrize("path", ["/etc/shadow", "/var/vcap/../../etc/shadow", 7])
def test_a_settings_path_outside_of_vcap_is_not_used(tree: Path, path: object) -> None:
    _put(tree, "usr/sbin/runsvdir-start")
    sources = [{"Type": "File", "SettingsPath": path}]
    document = {
        "Platform": {"Linux": {"BindMountPersistentDisk": True}},
        "Infrastructure": {"Settings": {"Sources": sources}},
    }
    _put(tree, "var/vcap/bosh/agent.json", json.dumps(document).encode())
    assert _facts(tree).settings == WARDEN_SETTINGS


def test_an_agent_json_for_a_machine_is_none_for_a_container(tree: Path) -> None:
    _put(tree, "usr/sbin/runsvdir-start")
    _put(tree, "var/vcap/bosh/agent.json", _agent(DevicePathResolutionType="virtio"))
    facts = _facts(tree)
    assert not facts.for_containers
    assert facts.settings == WARDEN_SETTINGS


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_architecture_comes_from_a_program(tree: Path, architecture: str) -> None:
    _put(tree, "usr/sbin/runsvdir-start")
    _put(tree, "bin/sh", _elf(architecture))
    assert _facts(tree).architecture == architecture


def test_links_stay_inside(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (tree / "abs").symlink_to(outside)
    (tree / "rel").symlink_to("../outside")
    with Root(tree) as root:
        for path in ("/abs/secret", "/rel/secret", "/../outside/secret"):
            with pytest.raises(OSError, match="No such file"):
                root.read(path)
        with pytest.raises(OSError):
            root.write("/abs/file", b"x")
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]


def test_write_replaces_a_link_instead_of_following_it(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    (tree / "etc/hosts").symlink_to(target)
    with Root(tree) as root:
        root.write("/etc/hosts", b"new", 0o600)
    assert target.read_text() == "untouched"
    assert (tree / "etc/hosts").read_bytes() == b"new"
    assert (tree / "etc/hosts").stat().st_mode & 0o777 == 0o600


def test_a_fifo_does_not_hold_up_a_reader(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with Root(tree) as root, pytest.raises(FileNotFoundError, match="not a regular file"):
        root.read("/pipe")


class _Watched(Root):
    def _open(self, path: str, flags: int) -> int:
        assert flags & os.O_PATH, "this would open a device"
        return super()._open(path, flags)


def test_nothing_is_opened_before_it_is_known_to_be_a_file(tree: Path) -> None:
    # As root a stemcell's device nodes are there, and opening a watchdog's reboots the host.
    os.mkfifo(tree / "pipe")
    with _Watched(tree) as root:
        assert root.read("/etc/os-release").startswith(b"ID=")
        with pytest.raises(FileNotFoundError):
            root.read("/pipe")


def test_a_busy_machine_hides_no_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """openat2(2) gives up at a ".." whenever anything is renamed, and wants to be asked again."""
    (tree / "etc/link").symlink_to("../etc/os-release")
    answers = iter([errno.EAGAIN] * 3)
    real = inroot._libc.syscall

    def syscall(*arguments: Any) -> int:
        if number := next(answers, 0):
            ctypes.set_errno(number)
            return -1
        return int(real(*arguments))

    monkeypatch.setattr(inroot._libc, "syscall", syscall)
    with Root(tree) as root:
        assert root.exists("/etc/link")
        assert not list(answers)
        assert not root.exists("/etc/none")
