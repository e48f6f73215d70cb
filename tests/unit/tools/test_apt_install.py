"""tools/apt-install with apt itself, which simulates, in a folder with made-up packages."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from testing.repository import REPOSITORY

ARCHIVE = """\
Package: containerd
Depends: runc

Package: runc

Package: docker.io
Depends: containerd (>= 1), runc (>= 1)

Package: containernetworking-plugins
"""
DOCKERS_OWN = """\
Package: containerd.io
Provides: containerd, runc
Conflicts: containerd, runc
Replaces: containerd, runc

Package: docker-ce
Depends: containerd.io
Conflicts: docker.io
"""
CONFIGURATION = """\
Dir "{0}";
Dir::Etc::sourcelist "{0}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::status "{0}/dpkg/status";
Dir::Log "{0}";
APT::Architecture "amd64";
APT::Get::Simulate "true";
Debug::NoLocking "true";
APT::Sandbox::User "root";
"""

Apt = Callable[..., "subprocess.CompletedProcess[str]"]


FOLDERS = (
    "dpkg/updates",
    "etc/apt/apt.conf.d",
    "etc/apt/preferences.d",
    "var/cache/apt/archives/partial",
    "var/lib/apt/lists/partial",
)


def packages(text: str, *more: str) -> str:
    """Return packages as in an archive, with the fields that apt insists on."""
    fields = ("Version: 1", "Architecture: all", "Maintainer: x", "Description: x", *more)
    common = "\n".join(fields)
    return "".join(f"{entry}\n{common}\n\n" for entry in text.strip().split("\n\n"))


@pytest.fixture
def apt_install(tmp_path: Path) -> Apt:
    """Return a function that runs tools/apt-install where `installed` packages are installed."""
    if os.geteuid() != 0:
        pytest.skip("apt-install needs root to install anything")
    archive = tmp_path / "archive"
    for folder in (archive, *(tmp_path / name for name in FOLDERS)):
        folder.mkdir(parents=True)
    file = ("Filename: x.deb", "Size: 1", f"SHA256: {'0' * 64}")
    (archive / "Packages").write_text(packages(ARCHIVE, *file))
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] copy:{archive} ./\n")
    (tmp_path / "apt.conf").write_text(CONFIGURATION.format(tmp_path))

    def run(*words: str, installed: str = "") -> "subprocess.CompletedProcess[str]":
        status = packages(installed, "Status: install ok installed") if installed else ""
        (tmp_path / "dpkg/status").write_text(status)
        own = {"APT_CONFIG": str(tmp_path / "apt.conf"), "DPKG_ADMINDIR": str(tmp_path / "dpkg")}
        return subprocess.run(
            [REPOSITORY / "tools/apt-install", *words],
            env={**os.environ, **own},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_what_is_missing_is_installed(apt_install: Apt) -> None:
    done = apt_install("containerd", "runc", installed="Package: runc")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "installing Debian packages: containerd\n"


def test_nothing_is_done_where_all_is_there(apt_install: Apt) -> None:
    done = apt_install("runc", installed="Package: runc")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_dockers_own_packages_are_used(apt_install: Apt) -> None:
    """The package that Docker ships conflicts with Debian's containerd and runc."""
    wanted = ("containerd", "runc", "docker.io", "containernetworking-plugins")
    done = apt_install(*wanted, installed=DOCKERS_OWN)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "installing Debian packages: containernetworking-plugins\n"


def test_what_would_remove_a_package_is_refused_by_name(apt_install: Apt) -> None:
    only_containerd = DOCKERS_OWN.split("\n\n")[0]
    done = apt_install("docker.io", installed=only_containerd)
    assert done.returncode == 1
    assert "apt would remove containerd.io, which conflicts" in done.stderr
