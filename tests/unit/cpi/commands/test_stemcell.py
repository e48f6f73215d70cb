"""`bosh-cpi stemcell`, as far as that needs neither root nor a registry."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cpi.commands.main import main
from tests.support.processes import ended, write_end
from tests.support.stemcells.small_stemcells import MANIFEST, ROOTFS, tar, tarball, zipped


@pytest.fixture
def stemcell(tmp_path: Path) -> Path:
    return tarball(tmp_path / "stemcell.tgz")


def run(*words: object) -> int:
    return main(["stemcell", *map(str, words)])


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out))


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["inspect"], ["convert"], ["push"], ["pull"]):
        with pytest.raises(SystemExit) as caught:
            run(*words, "--help")
        assert caught.value.code == 0
        printed = capsys.readouterr().out
        assert "bosh-cpi stemcell push stemcell.tgz ghcr.io/team/stemcell:1.2" in printed
        assert "docker login" in printed


def test_nothing_but_the_result_is_on_stdout(
    stemcell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", stemcell, f"oci:{tmp_path}/layout:1") == 0
    printed = capsys.readouterr()
    digest = printed.out.strip()
    assert len(digest) == 71
    assert "reading stemcell.tgz" in printed.err
    assert run("convert", stemcell, f"oci-archive:{tmp_path}/a.tar", "--json") == 0
    assert result(capsys)["digest"] == digest
    assert run("convert", f"oci:{tmp_path}/layout:1", f"oci-archive:{tmp_path}/b.tar") == 0
    assert run("convert", f"oci-archive:{tmp_path}/a.tar", f"oci:{tmp_path}/layout:2") == 0
    assert capsys.readouterr().out.split() == [digest, digest]
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.tar", "b.tar", "layout", "stemcell.tgz"]


def test_what_a_stemcell_is(
    stemcell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", stemcell, "--explain", "--json") == 0
    facts = result(capsys)
    assert (facts["name"], facts["version"]) == ("bosh-test-go_agent", "1.2")
    assert (facts["image_type"], facts["init"], facts["os_release"]) == ("rootfs", "runit", "Test")
    assert facts["target"] == "machines"
    paths = [file["path"] for file in facts["added"]]
    assert "/warden-cpi-dev" in paths
    assert "/etc/fstab" in paths
    assert run("inspect", stemcell, "--explain") == 0
    printed = capsys.readouterr().out
    assert "operating system  debian-test" in printed
    assert "the ephemeral disk is mounted here" in printed


def test_an_image_is_inspected_as_well(
    stemcell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("convert", stemcell, f"oci:{tmp_path}/layout")
    digest = capsys.readouterr().out.strip()
    assert run("inspect", f"oci:{tmp_path}/layout", "--json") == 0
    facts = result(capsys)
    assert (facts["digest"], facts["version"]) == (digest, "1.2")
    assert run("inspect", f"oci:{tmp_path}/layout", "--explain") == 1


def test_the_conversion_explains_what_it_adds(
    stemcell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", stemcell, f"oci:{tmp_path}/layout", "--explain") == 0
    digest, *table = capsys.readouterr().out.splitlines()
    assert digest.startswith("sha256:")
    assert any("kernel and boot loader" in line for line in table)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "{}/none.tgz", "oci:{}/x"], "none.tgz"),
        (["convert", "{}/stemcell.tgz", "{}/x"], "there are: oci:PATH, oci-archive:PATH, "),
        (["convert", "{}/stemcell.tgz", "oci:"], "names no file"),
        (["convert", "oci:{}/none", "oci:{}/x"], "no OCI image layout"),
        (["inspect", "{}/none.tgz"], "there is no such file"),
        (["inspect", "Not a reference"], "there is no such file"),
        (["push", "{}/stemcell.tgz", "h.io/a@sha256:" + "1" * 64], "gets a tag"),
        (["push", "{}/stemcell.tgz", "http://h.io/a"], "is no image reference"),
        (["push", "{}/stemcell.tgz", "127.0.0.1:1/a"], "127.0.0.1:1: Connection refused"),
        (["pull", "127.0.0.1:1/a:b", "oci:{}/x", "--plain-http"], "Connection refused"),
        (["pull", "127.0.0.1:1/a:b", "{}/x"], "is no destination"),
        (["pull", "h.io/a", "oci:{}/x", "--ca-file", "/none.pem"], "/none.pem"),
    ],
)
def test_errors_name_the_thing(
    stemcell: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(stemcell.parent)
    assert run(*(word.replace("{}", folder) for word in words)) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert [path.name for path in stemcell.parent.iterdir()] == ["stemcell.tgz"]


@pytest.fixture
def slow(stemcell: Path) -> bytes:
    """A bigger stemcell, to be fed to the pipe that stands in place of the other."""
    members = {"image": zipped(tar({**ROOTFS, "./var/more": os.urandom(8 << 20)}))}
    data = tarball(stemcell, {**members, "stemcell.MF": MANIFEST}).read_bytes()
    stemcell.unlink()
    os.mkfifo(stemcell)
    return data


def _converting(stemcell: Path) -> list[str]:
    words = ["stemcell", "convert", str(stemcell), f"oci:{stemcell.parent}/out/layout"]
    return [sys.executable, "-m", "cpi.commands.main", *words]


def test_a_terminal_shows_bytes_and_rate(stemcell: Path, slow: bytes) -> None:
    terminal, its_end = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    command = _converting(stemcell)
    with ended(subprocess.Popen(command, stderr=its_end, env=environment)) as process:
        os.close(its_end)
        with write_end(stemcell) as pipe:
            pipe.write(slow[: 6 << 20])
            pipe.flush()
            shown = b""
            while b"MiB/s" not in shown and b"MB/s" not in shown:
                shown += os.read(terminal, 4096)
            pipe.write(slow[6 << 20 :])
        with contextlib.suppress(OSError):  # the terminal's end of file
            while os.read(terminal, 4096):
                pass
    os.close(terminal)
    assert process.returncode == 0
    assert b"reading stemcell.tgz" in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, number: signal.Signals, stemcell: Path, slow: bytes
) -> None:
    command = _converting(stemcell)
    with (
        ended(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as process,
        write_end(stemcell) as pipe,
    ):
        pipe.write(slow[: 6 << 20])
        pipe.flush()
        assert process.stderr is not None
        assert "reading" in process.stderr.readline()
        assert list((tmp_path / "out").iterdir())
        process.send_signal(number)
        errors = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in errors
    assert list((tmp_path / "out").iterdir()) == []
