"""The stemcell maker's own logic, without root and without installing anything."""

import gzip
import json
import os
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from testing.stemcells import make_stemcell, stemcell_host, stemcell_rootfs
from testing.stemcells.stemcell_rootfs import BuildError, Plan

DATE = 1_700_000_000

MANIFEST = """\
---
name: "mine"
version: "1.2"
bosh_protocol: 1
api_version: 3
sha1: "abc"
operating_system: "debian-bookworm"
stemcell_formats:
- "warden-tar"
cloud_properties:
  name: "mine"
  version: "1.2"
  infrastructure: "warden"
  hypervisor: "boshlite"
  disk: 5120
  disk_format: "files"
  container_format: "bare"
  os_type: "linux"
  os_distro: "debian"
  architecture: "x86_64"
  root_device_name: "/dev/sda1"
"""


def test_manifest_is_what_boshs_own_packager_writes() -> None:
    content = make_stemcell.manifest("mine", "1.2", "abc", "debian-bookworm", "x86_64")
    assert make_stemcell.to_yaml(content) == MANIFEST


def test_names_of_variants_differ() -> None:
    real = Plan("runit", "bookworm", agent=Path("a"))
    assert make_stemcell.default_name(real, "debian") == (
        "bosh-warden-boshlite-debian-bookworm-runit-go_agent"
    )
    assert make_stemcell.default_name(Plan("systemd", "trixie"), "debian") == (
        "bosh-warden-boshlite-debian-trixie-systemd-stand_in_agent"
    )


def tree(root: Path, names: list[str], time: int) -> Path:
    """Create files in the order of `names`, with this time; return their folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        os.utime(path, (time, time))
    (root / "b/link").symlink_to("one")
    return root


def test_pack_depends_only_on_the_files(tmp_path: Path) -> None:
    first = tree(tmp_path / "1", ["b/one", "a/two", "c"], DATE + 50)
    second = tree(tmp_path / "2", ["c", "a/two", "b/one"], DATE + 99)
    sums = [
        make_stemcell.pack(root, ["."], tmp_path / f"{root.name}.tgz", date=DATE)
        for root in (first, second)
    ]
    assert sums[0] == sums[1]
    data = (tmp_path / "1.tgz").read_bytes()
    assert data == (tmp_path / "2.tgz").read_bytes()
    assert data[3:8] == bytes(5)  # gzip's header: no name, no time
    with tarfile.open(tmp_path / "1.tgz") as tar:
        names = tar.getnames()
        assert names == [".", "./a", "./a/two", "./b", "./b/link", "./b/one", "./c"]
        assert {member.mtime for member in tar} == {DATE}
        assert {member.uname for member in tar} == {""}


def test_pack_keeps_older_times(tmp_path: Path) -> None:
    root = tree(tmp_path / "1", ["b/one"], DATE - 50)
    make_stemcell.pack(root, ["b/one"], tmp_path / "x", date=DATE)
    with tarfile.open(tmp_path / "x") as tar:
        assert tar.getmember("b/one").mtime == DATE - 50


def test_pack_says_when_it_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BuildError, match="cannot pack"):
        make_stemcell.pack(tmp_path, ["missing"], tmp_path / "x", date=DATE)
    assert "missing" in capfd.readouterr().err


def test_publish_leaves_nothing_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(make_stemcell, "pack", interrupted)
    (tmp_path / "old.tgz").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        make_stemcell.publish(tmp_path, tmp_path / "old.tgz", date=DATE)
    assert [path.name for path in tmp_path.iterdir()] == ["old.tgz"]
    assert (tmp_path / "old.tgz").read_text() == "old"


def test_published_tarball_has_its_members_in_order(tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    stage.mkdir()
    for name in make_stemcell.MEMBERS:
        (stage / name).write_bytes(gzip.compress(b"") if name == "image" else b"x")
    make_stemcell.publish(stage, tmp_path / "out.tgz", date=DATE)
    with tarfile.open(tmp_path / "out.tgz", "r:gz") as tar:
        assert tar.getnames() == ["stemcell.MF", "packages.txt", "dev_tools_file_list.txt", "image"]
    assert stat.S_IMODE((tmp_path / "out.tgz").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--agent", "/no/such"], "there is no file /no/such"),
        (["--agent", "PLAIN"], "is not executable"),
        (["--monit", "/bin/sh"], "--monit needs --agent"),
        (["--extra", "/bin/sh"], "expected FILE=/PATH"),
        (["--extra", "/bin/sh=relative"], "expected FILE=/PATH"),
        (["--extra", "/bin/sh=/up/../x"], "expected FILE=/PATH"),
        (["--suite", "../x"], "is not the name of a suite"),
    ],
)
def test_wrong_arguments(
    words: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "PLAIN").write_text("")
    words = [str(tmp_path / word) if word == "PLAIN" else word for word in words]
    assert make_stemcell.main(["--init", "runit", *words]) == 1
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--init", "upstart"], ["--init", "runit", "--nonsense"]])
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_stemcell.main(words)
    assert "usage:" in capsys.readouterr().err


def test_needs_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert make_stemcell.main(["--init", "systemd"]) == 1
    assert "sudo" in capsys.readouterr().err


def test_names_the_package_of_a_missing_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "mmdebstrap" else name)
    assert make_stemcell.main(["--init", "systemd"]) == 1
    assert "apt-get install mmdebstrap" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        make_stemcell.main(["--help"])
    text = capsys.readouterr().out
    assert "sudo python3 -m testing.stemcells.make_stemcell --init systemd" in text
    assert "build-essential" in text


DEB822 = """\
Types: deb deb-src
# a comment within
URIs: http://mirror/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://other/packages
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/other.gpg

Types: deb
URIs: http://security/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 x

Types: deb
Enabled: no
URIs: http://off/debian
Suites: bookworm
Components: main
"""
KEYRING = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """Return a host's /etc with sources in both formats."""
    folder = tmp_path / "apt/sources.list.d"
    folder.mkdir(parents=True)
    (tmp_path / "apt/sources.list").write_text(
        "# deb http://old/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k/debian-archive-keyring.gpg] http://a/debian trixie main # x\n"
        "deb-src http://b/debian bookworm main\n"
    )
    (folder / "tool.list").write_text("deb http://tool/repo bookworm stable\n")
    (folder / "debian.sources").write_text(DEB822)
    return tmp_path


def test_mirrors_are_the_hosts_own(etc: Path) -> None:
    assert stemcell_host.mirrors("bookworm", etc) == [
        f"deb [{KEYRING}] http://mirror/debian bookworm main contrib",
        f"deb [{KEYRING}] http://mirror/debian bookworm-updates main contrib",
        "deb http://security/debian-security bookworm-security main",
    ]
    assert stemcell_host.mirrors("trixie", etc) == [
        "deb [arch=amd64 signed-by=/k/debian-archive-keyring.gpg] http://a/debian trixie main"
    ]


def test_another_suite_comes_from_the_same_mirror(etc: Path) -> None:
    assert stemcell_host.mirrors("sid", etc) == []
    (etc / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    lines = stemcell_host.mirrors("forky", etc)
    assert lines[0] == f"deb [{KEYRING}] http://mirror/debian forky main contrib"
    assert lines[-1] == "deb http://security/debian-security forky-security main"


def test_mmdebstrap_command() -> None:
    plan = Plan("runit", "bookworm", include=("zsh",), mirrors=("deb http://m bookworm main",))
    argv = stemcell_rootfs.mmdebstrap_argv(plan, Path("/w/root"), ['A "b";'])
    assert argv[-3:] == ["bookworm", "/w/root", "deb http://m bookworm main"]
    assert '--aptopt=A "b";' in argv
    (include,) = (word for word in argv if word.startswith("--include="))
    assert {"runit", "python3", "zsh"} <= set(include.partition("=")[2].split(","))
    assert "openssh-server" not in include
    assert "openssh-server" in Plan("runit", "bookworm", agent=Path("a")).packages


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a minimal rootfs of Debian; programs in it are not run."""
    folder = tmp_path / "root"
    for name in ("etc/runit", "etc/sv/ssh", "var/lib/dpkg/info", "usr/bin", "home/vcap", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "etc/service").symlink_to("runit")
    (folder / "usr/bin/gcc-12").write_text("")
    (folder / "var/lib/dpkg/info/gcc-12:amd64.list").write_text("/.\n/usr\n/usr/bin/gcc-12\n")
    (folder / "var/lib/dpkg/info/libgcc-s1:amd64.list").write_text("/usr/bin\n")
    monkeypatch.setattr(stemcell_rootfs, "in_root", lambda *_: "")
    return folder


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return an executable file."""
    path = tmp_path / "program"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o700)
    return path


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_stand_in_on_systemd(root: Path) -> None:
    stemcell_rootfs.furnish(root, Plan("systemd", "bookworm"), "1.2")
    units = root / "etc/systemd/system"
    assert os.readlink(units / "systemd-udevd.service") == "/dev/null"
    wanted = os.readlink(units / "multi-user.target.wants/bosh-agent.service")
    assert (root / wanted.lstrip("/")).is_file()
    bosh = root / "var/vcap/bosh"
    assert mode(bosh) == 0o700
    assert mode(bosh / "bin/bosh-agent") == 0o755
    assert (bosh / "stand_in/testing/agent/stand_in_agent.py").is_file()
    assert not (bosh / "bin/monit").exists()
    linux = json.loads((bosh / "agent.json").read_text())["Platform"]["Linux"]
    assert linux["ServiceManager"] == "systemd"
    assert linux["BindMountPersistentDisk"] is True
    assert (bosh / "etc/stemcell_version").read_text() == "1.2"
    assert (bosh / "etc/operating_system").read_text() == "ubuntu"
    assert (bosh / "etc/dev_tools_file_list").read_text() == "/usr/bin/gcc-12\n"
    assert (root / "warden-cpi-dev").is_dir()


def test_real_agent_on_runit(root: Path, program: Path) -> None:
    extra = ((program, "/var/vcap/bosh/bin/bosh-blobstore-dav"),)
    plan = Plan("runit", "bookworm", agent=program, monit=program, extra=extra)
    stemcell_rootfs.furnish(root, plan, "1")
    assert not (root / "etc/service").is_symlink()
    services = {path.name: os.readlink(path) for path in (root / "etc/service").iterdir()}
    assert services == {
        name: f"/etc/sv/{name}" for name in ("agent", "cron", "monit", "rsyslog", "ssh")
    }
    assert all(mode(root / target.lstrip("/") / "run") == 0o755 for target in services.values())
    assert (root / "etc/sv/monit/down").exists()
    assert mode(root / "etc/sv/agent") == 0o700
    assert mode(root / "usr/sbin/runsvdir-start") == 0o755
    bosh = root / "var/vcap/bosh"
    for name in ("bosh-agent", "monit", "bosh-blobstore-dav", "bosh-agent-rc", "sync-time"):
        assert mode(bosh / "bin" / name) == 0o755
    assert mode(bosh / "etc/monitrc") == 0o700
    assert mode(root / "var/vcap/monit/alerts.monitrc") == 0o600
    assert mode(root / "etc/sudoers.d/bosh_sudoers") == 0o440
    assert "ServiceManager" not in (bosh / "agent.json").read_text()
    assert not (root / "etc/systemd").exists()


def test_agent_without_monit_gets_a_placeholder(root: Path, program: Path) -> None:
    stemcell_rootfs.furnish(root, Plan("systemd", "bookworm", agent=program), "1")
    assert "sleep infinity" in (root / "var/vcap/bosh/bin/monit").read_text()
    assert mode(root / "var/vcap/bosh/bin/monit") == 0o755


def test_nothing_is_written_outside_the_rootfs(root: Path, tmp_path: Path) -> None:
    (root / "run").symlink_to(tmp_path)
    for name in ("/run/x", "../x", "/run/deeper/x"):
        with pytest.raises(BuildError, match="leads out"):
            stemcell_rootfs.inside(root, name)
    assert not (tmp_path / "deeper").exists()
    (root / "lib").symlink_to("usr/lib")
    assert stemcell_rootfs.inside(root, "/lib/a/b") == root / "usr/lib/a/b"


def test_trim_keeps_licences_and_drops_what_varies(root: Path) -> None:
    for name in ("usr/share/doc/a/copyright", "usr/share/doc/a/changelog.gz", "tmp/x/y"):
        stemcell_rootfs.inside(root, name).write_text("")
    for name in ("etc/ssh/ssh_host_rsa_key", "var/log/apt/history.log", "etc/passwd-"):
        stemcell_rootfs.inside(root, name).write_text("")
    lines = "deb http://user:secret@mirror/debian bookworm main\n"
    stemcell_rootfs.inside(root, "etc/apt/sources.list").write_text(lines)
    (root / "etc/shadow").write_text("root:!:20000:0:99999:7:::\nvcap:!:20001:0:99999:7:::\n")
    stemcell_rootfs.trim(root, 86400 * 19000, real=True)
    left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert "usr/share/doc/a/copyright" in left
    assert not left & {"usr/share/doc/a/changelog.gz", "tmp/x/y", "etc/passwd-"}
    assert not left & {"etc/ssh/ssh_host_rsa_key", "var/log/apt/history.log"}
    assert "http://mirror/debian" in (root / "etc/apt/sources.list").read_text()
    assert (root / "etc/shadow").read_text() == (
        "root:*:19000:0:99999:7:::\nvcap:*:19000:0:99999:7:::\n"
    )


def test_package_date_is_that_of_the_newest_package(root: Path) -> None:
    assert stemcell_rootfs.package_date(root) == 0
    for name, time in (("a/copyright", DATE), ("b/changelog.Debian.gz", DATE + 9)):
        path = stemcell_rootfs.inside(root, f"usr/share/doc/{name}")
        path.write_text("")
        os.utime(path, (time, time))
    assert stemcell_rootfs.package_date(root) == DATE + 9
