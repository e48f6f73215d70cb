"""The doctor's checks of the host: one that is well and one that is not for each."""

import fcntl
import io
import json
import os
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from cpi.commands import doctor, host_checks
from cpi.commands.host_checks import Host
from cpi.commands.main import main
from cpi.config.config import Config
from cpi.disks import loop
from cpi.errors import CloudError
from cpi.findings import (
    FAILURE,
    OK,
    WARNING,
    Checks,
    Finding,
    commands,
    failure,
    ok,
    packages,
    warning,
)
from cpi.host import headroom
from cpi.host.limits import INOTIFY_INSTANCES
from cpi.service.sockets import main_socket
from cpi.setup import units
from cpi.setup.steps import CONFIG, Step
from tests.support.fake_config import fake_config


@pytest.fixture
def host(config: Config) -> Host:
    return Host(config)


def of_host(name: str, host: Host) -> Finding:
    checks = [*host_checks.FIRST.run(host), *host_checks.CHECKS.run(host)]
    return next(finding for finding in checks if finding.check == name)


# How checks are run


def test_what_a_check_raises_is_a_failure_and_does_not_block_the_others() -> None:
    checks = Checks[None]()

    @checks.add("first")
    def _first(_: None) -> Finding:
        raise CloudError("it is broken")

    @checks.add("second")
    def _second(_: None) -> Finding:
        return ok("well")

    @checks.add("third")
    def _third(_: None) -> Finding:
        raise PermissionError(13, "no", "/file")

    assert checks.run(None) == [
        Finding(FAILURE, "it is broken", check="first"),
        Finding(OK, "well", check="second"),
        Finding(FAILURE, "/file: no", check="third"),
    ]


def test_a_runtime_that_is_not_configured_is_one_warning() -> None:
    results = [ok("there"), warning("odd", "fix"), failure("missing", "get it"), failure("too", "")]
    assert doctor.optional("some", results) == warning("missing (only for runtime some)", "get it")
    assert doctor.optional("some", results[:2]).status == OK


def test_a_runtime_that_does_not_load_has_its_hint(config: Config) -> None:
    (finding,) = doctor.of_runtime("nosuch", config)
    assert (finding.status, "nosuch" in finding.message) == (FAILURE, True)


# Cures


def tried(path: Path, *others: Finding) -> Callable[[], list[tuple[str, Finding]]]:
    """Return a function that checks whether a file is there, and proposes to make it."""

    def look() -> list[tuple[str, Finding]]:
        there = path.exists()
        finding = ok("there") if there else failure("missing", commands(("touch", str(path))))
        return [("host", replace(finding, check="file")), *(("host", other) for other in others)]

    return look


def test_a_cure_is_done_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a file"
    results = doctor.fixed(tried(path), yes=True)
    assert [finding.status for _, finding in results] == [OK]
    shown = capsys.readouterr().err
    assert shown == f"host, file: missing\n  touch '{path}'\n"


def test_a_cure_that_does_not_cure_is_done_once(tmp_path: Path) -> None:
    path = tmp_path / "no folder" / "file"
    results = doctor.fixed(tried(path), yes=True)
    assert [finding.status for _, finding in results] == [FAILURE]


def test_advice_is_not_done(tmp_path: Path) -> None:
    other = warning("odd", f"touch {tmp_path}/other")
    doctor.fixed(tried(tmp_path / "file", other), yes=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("answer", "there"), [("y\n", True), ("\n", False)])
def test_a_terminal_is_asked_before_each_cure(
    tmp_path: Path, answer: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    doctor.fixed(tried(tmp_path / "file"), yes=False)
    assert (tmp_path / "file").exists() is there


def test_without_a_terminal_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    doctor.fixed(tried(tmp_path / "file"), yes=False)
    assert not (tmp_path / "file").exists()
    assert "pass --yes to confirm" in capsys.readouterr().err


def test_packages_are_installed_without_removing_any() -> None:
    cure = packages("xfsprogs", "fdisk")
    assert cure.text == "apt-get install xfsprogs fdisk"
    assert [words[0] for words in cure.commands] == ["apt-get"]
    assert "--no-remove" in cure.commands[0]


def test_programs_for_a_runtime_that_is_not_configured_are_not_installed() -> None:
    assert doctor.optional("some", [failure("missing", packages("some"))]).cure is None


# The host


@pytest.mark.parametrize(
    ("version", "status"), [((3, 9), FAILURE), ((3, 10), OK), ((3, 13), OK), ((3, 14), WARNING)]
)
def test_python(
    host: Host, version: tuple[int, int], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert host_checks._python(host).status == status


def test_configuration(host: Host, tmp_path: Path) -> None:
    assert of_host("configuration", host).status == OK
    path = tmp_path / "cpi.json"
    path.touch(0o644)
    secret = fake_config(tmp_path, agent={"mbus": "https://u:p@0.0.0.0:6868"})
    finding = of_host("configuration", Host(secret, str(path)))
    assert (finding.status, finding.fix) == (WARNING, f"chmod 600 {path}")
    assert finding.cure
    doctor._apply(finding.cure)
    assert of_host("configuration", Host(secret, str(path))).status == OK
    finding = of_host("configuration", Host(secret, str(path), "it is no JSON"))
    assert (finding.status, str(path) in finding.fix) == (FAILURE, True)


def test_kernel_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(fake_config(tmp_path, max_vms=1_000_000))
    monkeypatch.setattr(headroom, "exhausted", lambda *, systemd: None)
    assert of_host("kernel limits", host).status == OK

    monkeypatch.setattr(headroom, "exhausted", lambda *, systemd: INOTIFY_INSTANCES)
    finding = of_host("kernel limits", host)
    assert finding.status == FAILURE
    assert "fs.inotify.max_user_instances=" in finding.message
    assert finding.fix == "sysctl -w fs.inotify.max_user_instances=16000128"


def test_a_broken_file_is_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # the rest is not for fast tests
    path = tmp_path / "cpi.json"
    path.write_text("{")
    assert main(["-c", str(path), "doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    broken = [check for check in report["checks"] if check["check"] == "configuration"]
    assert broken[0]["status"] == FAILURE
    assert str(path) in broken[0]["message"]
    assert report["failures"] == sum(check["status"] == FAILURE for check in report["checks"])


def test_root(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert of_host("root", host).status == OK
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert of_host("root", host).fix == "sudo bosh-cpi doctor"
    assert [finding.check for _, finding in doctor.findings(host)] == [
        "python",
        "configuration",
        "root",
    ]


def test_loop_devices(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = tmp_path / "loop-control"
    monkeypatch.setattr(loop, "CONTROL", str(control))
    assert of_host("loop devices", host).fix == "modprobe loop"
    control.touch()
    assert of_host("loop devices", host).status == FAILURE  # it gives no device
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: 7)
    assert of_host("loop devices", host) == Finding(OK, "/dev/loop7 is free", check="loop devices")
    monkeypatch.setattr(host_checks, "_LOOP_KERNEL", (99, 0))
    assert "older" in of_host("loop devices", host).message


def test_tools(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = [("sh", "dash", ""), ("nosuch-xfs", "xfsprogs", "disks with ext4")]
    monkeypatch.setattr(host_checks, "TOOLS", tools[:1])
    assert of_host("tools", host).status == OK
    monkeypatch.setattr(host_checks, "TOOLS", tools)
    finding = of_host("tools", host)
    assert (finding.status, finding.fix) == (WARNING, "apt-get install xfsprogs")
    monkeypatch.setattr(host_checks, "TOOLS", [*tools, ("nosuch", "e2fsprogs", "")])
    finding = of_host("tools", host)
    assert (finding.status, finding.fix) == (FAILURE, "apt-get install xfsprogs e2fsprogs")


@pytest.mark.parametrize(
    ("scarce", "min_free", "status"),
    [(0, 0, OK), (1 << 60, 0, WARNING), (1 << 60, 1 << 60, FAILURE)],
)
def test_disk_space(
    host: Host, scarce: int, min_free: int, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_checks, "_SCARCE", scarce)
    monkeypatch.setattr(host_checks, "_MIN_FREE", min_free)
    assert of_host("disk space", host).status == status


def test_after_a_restart(host: Host) -> None:
    assert of_host("after a restart", host).status == OK
    folder = Path(host.config.text("state_dir")) / "vms" / "fake-vm-1"
    folder.mkdir(parents=True)
    (folder / "network.json").write_text("[]")
    finding = of_host("after a restart", host)
    assert (finding.status, "fake-vm-1" in finding.message) == (WARNING, True)
    assert finding.fix == "bosh-cpi restore"
    assert finding.cure
    assert finding.cure.commands[0][-1] == "restore"


class _Unix(socketserver.ThreadingUnixStreamServer):
    status = 200


class _Health(BaseHTTPRequestHandler):
    server: _Unix

    def do_GET(self) -> None:
        self.send_response(self.server.status if self.path == "/healthz" else 404)
        self.end_headers()

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def serving(host: Host) -> Iterator[_Unix]:
    path = main_socket(host.config)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _Unix(str(path), _Health) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_no_service_is_a_warning(host: Host) -> None:
    finding = of_host("service", host)
    assert (finding.status, finding.fix) == (WARNING, "bosh-cpi serve")


def test_an_installed_service_is_started_by_systemd(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "is_installed", lambda _: True)
    finding = of_host("service", host)
    assert finding.fix == "systemctl start bosh-containerd-cpi"
    assert finding.cure


def test_preparation(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_checks, "of_kernel", lambda *_: [])
    assert of_host("preparation", host).status == OK
    step = Step("raise kernel.pid_max from 1 to 2", lambda: None)
    monkeypatch.setattr(host_checks, "preparation", lambda *_: [step])
    assert of_host("preparation", host).status == OK  # this configuration has no units
    finding = of_host("preparation", Host(host.config, CONFIG))
    assert (finding.status, finding.fix) == (WARNING, "bosh-cpi setup --yes")
    assert "raise kernel.pid_max" in finding.message


def test_service(host: Host, serving: _Unix) -> None:
    assert of_host("service", host).status == OK
    serving.status = 503
    assert "503" in of_host("service", host).message
    assert of_host("service", host).status == FAILURE


def test_a_socket_that_does_not_answer_is_a_failure(host: Host) -> None:
    path = main_socket(host.config)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert of_host("service", host).status == FAILURE
