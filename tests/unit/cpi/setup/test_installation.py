"""The folder of an installation: known by its releases, and removed with the links to it."""

import sys
from pathlib import Path

import pytest

from cpi.setup import installation
from cpi.setup.steps import System


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the installation that runs, below a system in a folder."""
    prefix = tmp_path / "opt"
    (prefix / "releases/1").mkdir(parents=True)
    (prefix / "current").symlink_to("releases/1")
    monkeypatch.setattr(sys, "prefix", str(prefix / "releases/1"))
    links = tmp_path / "usr/local/bin"
    links.mkdir(parents=True)
    (links / "cpi").symlink_to(prefix / "current/bin/cpi")
    return prefix


def test_units_name_the_link_that_an_upgrade_changes(installed: Path) -> None:
    assert installation.program() == f"{installed}/current/bin/bosh-cpi"


def test_all_of_it_is_removed(installed: Path, tmp_path: Path) -> None:
    steps = installation.program_files(System(tmp_path))
    assert [step.title for step in steps] == ["remove /usr/local/bin/cpi", f"remove {installed}"]
    for step in steps:
        step.act()
    assert not installed.exists()
    assert list((tmp_path / "usr/local/bin").iterdir()) == []


@pytest.mark.parametrize("other", ["/opt/other/bin/cpi", "{}-other/bin/cpi"])
def test_a_link_to_another_installation_stays(installed: Path, tmp_path: Path, other: str) -> None:
    link = tmp_path / "usr/local/bin/cpi"
    link.unlink()
    link.symlink_to(other.format(installed))
    steps = installation.program_files(System(tmp_path))
    assert [step.title for step in steps] == [f"remove {installed}"]


def test_a_checkout_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert installation.program_files(System(tmp_path)) == []
    assert installation.program() == f"{tmp_path}/.venv/bin/bosh-cpi"
