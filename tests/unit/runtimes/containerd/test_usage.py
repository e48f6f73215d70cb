"""What cgroups tell of use: v1, v1 with v2 beside it, v2. Plain folders stand for the kernel's."""

from pathlib import Path

import pytest

from cpi.views import LogPart
from runtimes.containerd import cgroups, usage, vm_logs
from runtimes.libvirt import listing
from stemcell_convert.inroot import Root

VM = "bosh/containerd-vm-1"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def write_v1(root: Path, limit: str) -> None:
    write(root / "cpuacct" / VM, cpuacct__usage="1500000000\n")
    write(
        root / "memory" / VM,
        memory__usage_in_bytes="3000000\n",
        memory__limit_in_bytes=limit,
        memory__stat="cache 5\ninactive_file 1\ntotal_inactive_file 1000000\n",
    )
    write(root / "pids" / VM, pids__current="12\n")
    write(
        root / "blkio" / VM,
        blkio__throttle__io_service_bytes_recursive=(
            "8:0 Read 4096\n8:0 Write 100\n8:0 Sync 4196\n8:0 Total 4196\n"
            "7:1 Read 4\n7:1 Write 1\nTotal 4201\n"
        ),
    )


def test_v1(root: Path) -> None:
    write_v1(root, "536870912\n")
    assert usage.read(f"/{VM}") == {
        "cpu": 1.5,
        "memory": 2_000_000,
        "memory_limit": 536870912,
        "pids": 12,
        "read": 4100,
        "written": 101,
    }


def test_hybrid_without_limits(root: Path) -> None:
    (root / "unified" / VM).mkdir(parents=True)
    write_v1(root, "9223372036854771712\n")
    found = usage.read(f"/{VM}")
    assert found is not None
    assert found["memory_limit"] is None
    assert found["pids"] == 12


def test_v2(root: Path) -> None:
    write(root, cgroup__controllers="cpu io memory pids\n")
    write(
        root / VM,
        cpu__stat="usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n",
        memory__current="3000000\n",
        memory__max="max\n",
        memory__stat="anon 9\ninactive_file 1000000\n",
        pids__current="7\n",
        io__stat="8:0 rbytes=4096 wbytes=100 rios=1 wios=1 dbytes=0 dios=0\n7:1 \n254:0 rbytes=4\n",
    )
    assert usage.read(f"/{VM}") == {
        "cpu": 2.5,
        "memory": 2_000_000,
        "memory_limit": None,
        "pids": 7,
        "read": 4100,
        "written": 100,
    }


def test_v2_without_controllers(root: Path) -> None:
    """cpu.stat is there always; the others where a parent passes their controller on."""
    write(root, cgroup__controllers="")
    write(root / VM, cpu__stat="usage_usec 1000000\n")
    found = usage.read(f"/{VM}")
    assert found == {
        **dict.fromkeys(("memory", "memory_limit", "pids")),
        "cpu": 1.0,
        "read": 0,
        "written": 0,
    }


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_cgroup_that_is_gone(root: Path, version: str) -> None:
    if version == "v2":
        write(root, cgroup__controllers="cpu\n")
    assert usage.read(f"/{VM}") is None


def test_a_domains_statistics() -> None:
    numbers = {
        "cpu.time": 2_500_000_000,
        "balloon.rss": 2048,
        "balloon.maximum": 4096,
        "block.count": 2,
        "block.0.rd.bytes": 10,
        "block.0.wr.bytes": 1,
        "block.0.physical": 100,
        "block.1.rd.bytes": 20,
        "block.1.physical": 200,
    }
    used = listing.usage("kvm-vm-1", numbers)
    assert (used.cpu, used.memory, used.memory_limit) == (2.5, 2 << 20, 4 << 20)
    assert (used.disk, used.read, used.written) == (300, 30, 1)
    assert listing.usage("kvm-vm-1", {}).memory is None


# Logs, which are files in a tree that the VM's root makes


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
