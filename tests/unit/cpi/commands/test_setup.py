"""`bosh-cpi setup` and `stop`: shown, confirmed, done; with steps that touch nothing here."""

import argparse
import io
import json
import sys
from pathlib import Path

import pytest

from cpi.commands import main as command_line, setup
from cpi.commands.main import main
from cpi.config.config import Config
from cpi.errors import CloudError
from cpi.setup.steps import Step, System, written


def options(**given: bool) -> argparse.Namespace:
    return argparse.Namespace(**{"dry_run": False, "yes": False, **given})


def test_steps_are_shown_and_a_dry_run_does_none(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [Step("write a file", lambda: pytest.fail("it is a dry run"))]
    assert setup._confirmed(steps, options(dry_run=True)) is False
    assert capsys.readouterr().out == "  write a file\n1 steps; nothing was done\n"


@pytest.mark.parametrize(("answer", "confirmed"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_a_terminal_is_asked(answer: str, confirmed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert setup._confirmed([], options()) is confirmed


def test_without_a_terminal_yes_is_needed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert setup._confirmed([], options()) is False
    assert "pass --yes to confirm" in capsys.readouterr().err
    assert setup._confirmed([], options(yes=True)) is True


def test_a_step_that_fails_does_not_block_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def fail() -> None:
        raise CloudError("it is in use")

    steps = [Step("remove a", fail), Step("remove b", lambda: done.append("b"))]
    assert setup._perform(steps) == 1
    assert done == ["b"]
    assert capsys.readouterr().err == "bosh-cpi: cannot remove a: it is in use\n"


def test_files_are_written_once(tmp_path: Path) -> None:
    system = System(tmp_path)
    for step in written(system, "/etc/some/file", "text"):
        step.act()
    assert (tmp_path / "etc/some/file").read_text() == "text"
    assert (tmp_path / "etc/some/file").stat().st_mode & 0o777 == 0o644
    assert written(system, "/etc/some/file", "text") == []
    assert [path.name for path in (tmp_path / "etc/some").iterdir()] == ["file"]


@pytest.mark.parametrize("option", ["--vms", "--disks"])
def test_what_undo_deletes_needs_undo(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["setup", option]) == 1
    assert "pass --undo" in capsys.readouterr().err


def test_stop_needs_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop"]) == 1
    assert "pass --all" in capsys.readouterr().err


def test_stop_reports_what_failed(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cpi.json"
    folders = {name: config.text(name) for name in ("state_dir", "run_dir")}
    path.write_text(json.dumps({"runtime": "fake", "log_level": "error", **folders}))
    (tmp_path / "state/vms/fake-vm-1").mkdir(parents=True)
    assert main(["-c", str(path), "stop", "--all", "--json"]) == 1
    done = json.loads(capsys.readouterr().out)
    assert done == {"stopped": [], "failed": {"fake-vm-1": "there is no VM fake-vm-1"}}


def test_the_installed_configuration_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "cpi.json"
    monkeypatch.setattr(command_line, "CONFIG", str(installed))
    monkeypatch.delenv(command_line.CONFIG_VARIABLE, raising=False)
    parse = command_line.parser
    assert parse().parse_args(["vms"]).config is None
    installed.write_text("{}")
    assert parse().parse_args(["vms"]).config == str(installed)
    assert parse().parse_args(["serve"]).config == str(installed)
    assert parse().parse_args(["-c", "other.json", "vms"]).config == "other.json"
    monkeypatch.setenv(command_line.CONFIG_VARIABLE, "named.json")
    assert parse().parse_args(["vms"]).config == "named.json"
