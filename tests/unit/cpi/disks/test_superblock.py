"""Which file systems the kernel is asked to mount: honest ones of any tool, and no others."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from cpi.disks.superblock import SIZE, problem
from tests.support.stemcells.fuzzing import stable

EXT4_MIB, XFS_MIB = 16, 304
EXT4 = 1024  # where its superblock begins


def made(path: Path, mib: int, *argv: str) -> Path:
    with path.open("wb") as file:
        file.truncate(mib << 20)
    if shutil.which(argv[0], path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        pytest.skip(f"{argv[0]} is not installed; `make test-packages` installs it")
    subprocess.run([*argv, str(path)], check=True, capture_output=True)
    return path


def head_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(SIZE)


def ext4_problem(path: Path) -> str:
    return problem("ext4", head_of(path), path.stat().st_size)


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("ext4") / "image"
    return head_of(made(path, EXT4_MIB, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096"))


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return head_of(made(tmp_path_factory.mktemp("xfs") / "image", XFS_MIB, "mkfs.xfs", "-q"))


@pytest.mark.parametrize(
    "options",
    ["", "-b 1024", "-b 2048 -I 128", "-O ^has_journal", "-O ^64bit,^metadata_csum", "-O quota",
     "-O inline_data", "-O meta_bg,^resize_inode", "-T largefile4", "-e panic"],
)  # fmt: skip
def test_what_mke2fs_makes(tmp_path: Path, options: str) -> None:
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", *options.split()]
    assert ext4_problem(made(tmp_path / "image", EXT4_MIB, *argv)) == ""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("-O mmp", "incompat 0x100"),
        ("-O bigalloc", "ro_compat 0x200"),
        ("-O encrypt", "incompat 0x10000"),
        ("-O casefold", "incompat 0x20000"),
        ("-O verity", "ro_compat 0x8000"),
        ("-b 8192", "blocks are larger"),
        ("-O journal_dev", "incompat 0x8"),
        ("-E mount_opts=debug", "mount options of its own"),
    ],
)
def test_what_is_not_let_through(tmp_path: Path, options: str, reason: str) -> None:
    path = tmp_path / "image"
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0"]
    if options.startswith("-E"):
        made(path, EXT4_MIB, *argv)
        subprocess.run(["tune2fs", *options.split(), str(path)], check=True, capture_output=True)
    else:
        made(path, EXT4_MIB, *argv, *options.split())
    assert reason in ext4_problem(path)


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (0x4, "<I", 0xFFFFFFF0),  # blocks
        (0x14, "<I", 9),  # the first one
        (0x18, "<I", 60),  # their size
        (0x20, "<I", 0),  # blocks in a group: the kernel divides by it
        (0x28, "<I", 0),
        (0x28, "<I", 1 << 30),
        (0x38, "<H", 0),
        (0x4C, "<I", 7),
        (0x58, "<H", 65535),
        (0x60, "<I", 0xFFFFFFFF),
        (0xE4, "<I", 0x801),  # the journal: /dev/sda1
        (0x150, "<I", 1),
    ],
)
def test_ext4_that_lies(ext4: bytes, offset: int, form: str, value: int) -> None:
    changed = bytearray(ext4)
    struct.pack_into(form, changed, EXT4 + offset, value)
    assert problem("ext4", bytes(changed), EXT4_MIB << 20)


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (0, ">I", 0),
        (4, ">I", 12345),
        (8, ">Q", 1 << 60),
        (16, ">Q", 1),  # blocks of a realtime device
        (48, ">Q", 0),  # a journal elsewhere
        (84, ">I", 0),
        (88, ">I", 77),
        (100, ">H", 3),
        (216, ">I", 0x80000000),
    ],
)
def test_xfs_that_lies(xfs: bytes, offset: int, form: str, value: int) -> None:
    assert problem("xfs", xfs, XFS_MIB << 20) == ""
    changed = bytearray(xfs)
    struct.pack_into(form, changed, offset, value)
    assert problem("xfs", bytes(changed), XFS_MIB << 20)


def test_less_than_a_file_system(ext4: bytes) -> None:
    assert problem("ext4", ext4[: SIZE - 1], EXT4_MIB << 20) == "it is too small for a file system"
    assert problem("xfs", ext4, EXT4_MIB << 20) == "it has no superblock"


@stable(300)
@given(
    st.sampled_from(["ext4", "xfs"]),
    st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, 255)), max_size=20),
    st.integers(0, 1 << 63),
)
def test_any_bytes_have_an_answer(
    ext4: bytes, xfs: bytes, fstype: str, changes: list[tuple[int, int]], size: int
) -> None:
    changed = bytearray(ext4 if fstype == "ext4" else xfs)
    for offset, value in changes:
        changed[offset] = value
    assert problem(fstype, bytes(changed), size).isprintable()
