"""What cgroups tell of use: v1, v1 with v2 beside it, v2. Plain folders stand for the kernel's."""

from pathlib import Path

import pytest

from runtimes.containerd import cgroups

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
    assert cgroups.usage(f"/{VM}") == {
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
    usage = cgroups.usage(f"/{VM}")
    assert usage is not None
    assert usage["memory_limit"] is None
    assert usage["pids"] == 12


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
    assert cgroups.usage(f"/{VM}") == {
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
    usage = cgroups.usage(f"/{VM}")
    assert usage == {
        **dict.fromkeys(("memory", "memory_limit", "pids")),
        "cpu": 1.0,
        "read": 0,
        "written": 0,
    }


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_cgroup_that_is_gone(root: Path, version: str) -> None:
    if version == "v2":
        write(root, cgroup__controllers="cpu\n")
    assert cgroups.usage(f"/{VM}") is None
