"""systemd's units: accepted by systemd, true to the configuration, installed and removed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from cpi.config.load import config_of
from cpi.setup import units
from cpi.setup.installation import program
from cpi.setup.preparation import preparation
from cpi.setup.steps import CONFIG, System
from tests.support.fake_config import fake_config

CONFIG_FILE = "/etc/other.json"


@pytest.fixture
def system(tmp_path: Path) -> System:
    """Return a system in a folder that systemd runs."""
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    return System(tmp_path)


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    files = []
    for name in units.UNITS:
        files.append(tmp_path / name)
        files[-1].write_text(units.rendered(name, config_of({}), CONFIG))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *map(str, files)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    ours = [line for line in done.stderr.splitlines() if "bosh-containerd-cpi" in line]
    assert (ours, done.returncode) == ([], 0), done.stderr


def test_paths_are_those_of_the_configuration(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    texts = {name: units.rendered(name, config, CONFIG_FILE) for name in units.UNITS}
    socket = texts[units.SOCKET]
    assert f"ListenStream={tmp_path}/run.sock\n" in socket
    assert f"ListenStream={tmp_path}/run/guest/cpi.sock\n" in socket
    for name in (units.SERVICE, units.VMS):
        assert f"={program()} --config {CONFIG_FILE} " in texts[name].replace("=-/", "=/")
    assert "/opt/" not in "".join(texts.values())


@pytest.mark.parametrize("address", ["0.0.0.0:9443", "[::1]:9443"])
def test_systemd_holds_the_tcp_socket_too(address: str) -> None:
    text = units.rendered(units.SOCKET, config_of({"service": {"tcp": address}}), CONFIG)
    assert f"\nListenStream={address}\nFreeBind=yes\n" in text
    plain = units.rendered(units.SOCKET, config_of({}), CONFIG)
    assert set(text.splitlines()) - set(plain.splitlines()) == {
        f"ListenStream={address}", "FreeBind=yes", "KeepAlive=yes",
    }  # fmt: skip
    # systemd takes no names.
    named = config_of({"service": {"tcp": "localhost:9443"}})
    assert units.rendered(units.SOCKET, named, CONFIG) == plain


def test_vms_are_restored_before_calls_come_and_shut_down_after_them() -> None:
    service = units.rendered(units.SERVICE, config_of({}), CONFIG_FILE)
    vms = units.rendered(units.VMS, config_of({}), CONFIG_FILE)
    after = next(line for line in service.splitlines() if line.startswith("After="))
    assert units.VMS in after.split()
    for daemon in ("containerd.service", "libvirtd.service", "libvirt-guests.service"):
        assert daemon in next(line for line in vms.splitlines() if line.startswith("After="))
    assert "ExecStop=" in vms
    # Restarting what runs VMs must not shut them down.
    for word in ("Requires=", "BindsTo=", "PartOf="):
        assert word not in vms


def test_units_are_installed_once_and_removed(system: System) -> None:
    config = config_of({})
    steps = units.install(system, config, CONFIG_FILE)
    for step in steps:
        step.act()
    assert [step.title for step in steps] == [
        *(f"write /etc/systemd/system/{name}" for name in units.UNITS),
        "systemctl daemon-reload",
        f"systemctl enable --now {units.VMS}",
    ]
    assert units.is_installed(system)
    wants = system.path("/etc/systemd/system/multi-user.target.wants")
    wants.mkdir()
    (wants / units.VMS).symlink_to(f"../{units.VMS}")  # as systemctl does
    assert units.install(system, config, CONFIG_FILE) == []
    other = units.install(system, config_of({"run_dir": "/run/other"}), CONFIG_FILE)
    assert [step.title for step in other][:2] == [
        f"write /etc/systemd/system/{units.SOCKET}",
        "systemctl daemon-reload",
    ]
    # Only what listens elsewhere from now on has to be restarted.
    assert f"systemctl try-restart {units.SOCKET}" in [step.title for step in other]
    for step in units.remove(system):
        step.act()
    assert not units.is_installed(system)
    assert units.remove(system) == []


def test_without_systemd_there_are_no_units(tmp_path: Path) -> None:
    titles = [step.title for step in preparation(System(tmp_path), config_of({}), None)]
    assert not [title for title in titles if "systemd" in title or "systemctl" in title]
