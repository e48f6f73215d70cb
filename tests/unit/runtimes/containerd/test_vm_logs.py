"""Logs of a VM, which are files in a tree that the VM's root makes."""

from pathlib import Path

from cpi.views import LogPart
from runtimes.containerd import vm_logs
from stemcell_convert.inroot import Root


def read(tree: Path, path: str, after: LogPart | None = None) -> LogPart | None:
    with Root(tree) as opened:
        return vm_logs.part(opened, path, after, 100)


def test_a_log_is_read_from_its_end_and_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert read(tmp_path, "/log") is None
    log.write_text("x" * 200 + "end\n")
    first = read(tmp_path, "/log")
    assert first is not None
    assert (len(first.data), first.end) == (100, 204)
    with log.open("a") as file:
        file.write("more\n")
    second = read(tmp_path, "/log", first)
    assert second is not None
    assert second.data == b"more\n"
    third = read(tmp_path, "/log", second)
    assert third is not None
    assert third.data == b""


def test_a_log_that_is_cut_off_or_replaced_is_read_anew(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\ntwo\n")
    first = read(tmp_path, "/log")
    log.write_text("cut\n")
    cut = read(tmp_path, "/log", first)
    assert cut is not None
    assert cut.data == b"cut\n"
    (tmp_path / "fresh").write_text("rotated, and longer\n")
    (tmp_path / "fresh").rename(log)
    rotated = read(tmp_path, "/log", cut)
    assert rotated is not None
    assert rotated.data == b"rotated, and longer\n"


def test_links_lead_nowhere_outside(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "log").symlink_to(f"../../../..{secret}")
    (tree / "folder").symlink_to(tmp_path)
    (tree / "pipe").mkdir()
    for path in ("/log", "/folder/secret", "/pipe"):
        assert read(tree, path) is None


def test_which_logs_there_are(tmp_path: Path) -> None:
    data = "var/vcap/data/root_log/messages"
    for path in ("var/vcap/bosh/log/current", data, "usr/bin/journalctl"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    with Root(tmp_path) as opened:
        running = vm_logs.places(opened, runs=True, systemd=True)
        stopped = vm_logs.places(opened, runs=False, systemd=True)
        runit = vm_logs.places(opened, runs=True, systemd=False)
    assert running.command[0] == "/usr/bin/journalctl"
    assert runit.command == stopped.command == ()
    assert runit.files == ("/var/vcap/bosh/log/current",)
    assert stopped.files == ("/var/vcap/bosh/log/current", "/var/vcap/data/root_log/messages")
