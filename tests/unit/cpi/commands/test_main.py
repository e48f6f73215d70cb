"""The `bosh-cpi` command, as far as that needs neither root nor a disk in use."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cpi import cid
from cpi.commands import console, output
from cpi.commands.main import main
from cpi.config.load import load_config
from cpi.disks.disk import Disk
from cpi.disks.disk_store import DiskStore, folders_of
from cpi.disks.snapshots import Snapshots
from tests.support.processes import ended


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cpi.json"
    folders = {"state_dir": str(tmp_path / "state"), "run_dir": str(tmp_path / "run")}
    path.write_text(json.dumps({**folders, "disk_stores": {"fast": str(tmp_path / "fast")}}))
    return path


@pytest.fixture
def store(config: Path) -> DiskStore:
    return DiskStore(folders_of(load_config(str(config))))


@pytest.fixture
def disk(store: DiskStore) -> Disk:
    metadata = {"deployment": "cf", "instance_group": "db", "instance_id": "0-1"}
    made = Disk(cid.new("some", cid.DISK), 16, store="fast", metadata=metadata)
    store.create(made)
    return made


def run(config: Path, *words: str) -> int:
    return main(["--config", str(config), *words])


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["disk"], *(["disk", verb] for verb in ("list", "mount", "fsck", "restore"))):
        with pytest.raises(SystemExit) as caught:
            main([*words, "--help"])
        assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "bosh-cpi disk fsck" in printed
    assert "$BOSH_CPI_CONFIG" in printed


def test_a_service_takes_its_configuration_on_either_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "gone.json")
    for words in (["--config", path, "serve"], ["serve", "-c", path]):
        assert main(words) == 1
        assert path in capsys.readouterr().err


def test_disks_are_listed_for_people_and_scripts(
    config: Path, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config, "disk", "list") == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[0] == "DISK"
    for word in (disk.cid, "16 MiB", "ext4", "fast", "detached", "cf", "db/0-1"):
        assert word in row
    assert run(config, "disk", "list", "--json") == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert (document["cid"], document["size"], document["state"]) == (disk.cid, 16, "detached")


def test_nothing_to_list(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("list",), ("snapshots",)):
        assert run(config, "disk", *words) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1
        assert run(config, "disk", *words, "--json") == 0
        assert json.loads(capsys.readouterr().out) == []


def test_everything_of_a_disk(
    config: Path, store: DiskStore, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = Snapshots(store).take(disk, cid.new("some", cid.SNAPSHOT), {"note": "one"})
    assert run(config, "disk", "show", disk.cid) == 0
    printed = capsys.readouterr().out
    for word in (str(store.image(disk)), "deployment: cf", snapshot.cid, snapshot.created_at):
        assert word in printed
    assert run(config, "disk", "snapshots", disk.cid) == 0
    assert snapshot.cid in capsys.readouterr().out


def test_restore_asks_first(
    config: Path, store: DiskStore, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = Snapshots(store).take(disk, cid.new("some", cid.SNAPSHOT), {})
    before = store.image(disk).stat()
    assert run(config, "disk", "restore", snapshot.cid) == 1
    assert "--yes" in capsys.readouterr().err
    assert store.image(disk).stat() == before
    assert run(config, "disk", "restore", snapshot.cid, "--yes") == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == disk.cid
    assert store.image(disk).stat().st_ino != before.st_ino
    store.check(disk)


def test_what_is_not_there_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, resource in (("show", cid.DISK), ("fsck", cid.DISK), ("restore", cid.SNAPSHOT)):
        name = cid.new("some", resource)
        assert run(config, "disk", verb, name) == 1
        captured = capsys.readouterr()
        assert name in captured.err
        assert captured.out == ""


@pytest.mark.parametrize("odd", ["../../etc/passwd", "x", "some-vm-00", ""])
def test_only_cids_are_taken(config: Path, odd: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(config, "disk", "show", odd)
    assert caught.value.code == 2
    assert "is not a disk CID" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "number"), [(0.0, 11), (1e9, 2)])
def test_progress_in_a_log_is_a_line_now_and_then(
    seconds: float,
    number: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output, "_LINE_SECONDS", seconds)
    with output.progress("copying") as progress:
        for done in range(101):
            progress(done << 20, 100 << 20)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == number
    assert lines[-1] == "copying: 100 of 100 MiB"


def test_a_reader_that_goes_is_no_error(config: Path, disk: Disk) -> None:
    command: list[Any] = [sys.executable, "-m", "cpi.commands.main", "-c", config, "disk", "list"]
    with ended(
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        (b"", b"one\n", b"one\n"),
        (b"one\n", b"one\n", b""),
        (b"one\n", b"one\ntwo\n", b"two\n"),
        (b"one\n" + b"x" * 9000 + b"two\n", b"x" * 8000 + b"two\nthree\n", b"three\n"),
        (b"one\n", b"something else", b"something else"),
    ],
)
def test_what_is_new_on_a_console(before: bytes, now: bytes, new: bytes) -> None:
    assert console.added(before, now) == new
