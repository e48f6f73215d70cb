"""Whatever a root file system has is kept on its way through, and none of it gets outside."""

import gzip
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from stemcell_convert import oci, oci_layout
from stemcell_convert.convert import convert
from stemcell_convert.pack import Rootfs, pack
from stemcell_convert.unpack import unpack
from tests.support.stemcells.fuzzing import stable, tried
from tests.support.stemcells.random_trees import About, Node, make, seen, trees
from tests.support.stemcells.small_stemcells import ELF, MANIFEST, means, tar, tarball

LIMIT = 1 << 30


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder on a file system that keeps all of a root file system."""
    try:
        os.setxattr(tmp_path, "user.note", b"x")
    except OSError as error:
        pytest.skip(f"{tmp_path} has no extended attributes: {error.strerror}")
    return tmp_path


@pytest.fixture
def fresh(place: Path) -> Iterator[Path]:
    """Return that folder, as root."""
    if os.geteuid() != 0:
        pytest.skip("owners and device nodes need root")
    yield place
    shutil.rmtree(place)


def _packed(folder: Path, target: Path) -> Rootfs:
    return pack(folder, target, lambda done, total: None)


def _emptied(place: Path) -> Path:
    for path in place.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return place


def _there_and_back(tree: Node, place: Path, root: bool) -> None:
    _emptied(place)
    make(tree, os.fsencode(place / "tree"), root)
    before = seen(place / "tree")
    packed = _packed(place / "tree", place / "a.tar.gz")
    assert seen(place / "tree") == before
    data = gzip.decompress(packed.path.read_bytes())
    assert packed.diff_id == oci.digest(data)
    assert packed.digest == oci.digest(packed.path.read_bytes())
    (place / "copy").mkdir()
    with packed.path.open("rb") as stream:
        assert unpack(stream, "the tree", place / "copy", LIMIT) == packed.diff_id
    assert seen(place / "copy") == before
    # The same files on the disk elsewhere, by another way, are the same bytes.
    assert _packed(place / "copy", place / "b.tar.gz").digest == packed.digest


@stable(20, shrink=False)
@given(trees(root=False))
def test_a_tree_comes_through_whole(place: Path, tree: Node) -> None:
    _there_and_back(tree, place, root=False)


@pytest.mark.integration
@stable(60, shrink=False)
@given(trees(root=True))
def test_what_only_root_can_make_comes_through_whole(fresh: Path, tree: Node) -> None:
    _there_and_back(tree, fresh, root=True)


_NEEDED = {"bin/sh": ELF, "etc/os-release": b"ID=x\n", "usr/sbin/runsvdir-start": ELF}


@pytest.mark.integration
@stable(8, shrink=False)
@given(trees(root=True))
def test_other_tools_unpack_the_same(fresh: Path, tree: Node) -> None:
    for program in ("umoci", "skopeo"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder = _emptied(fresh)
    tree.mode, tree.owner = 0o755, (0, 0)
    make(tree, os.fsencode(folder / "tree/opt/odd"), root=True)
    for name, data in _NEEDED.items():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / name).write_bytes(data)
    image = _packed(folder / "tree", folder / "image.tar.gz").path.read_bytes()
    stemcell = tarball(folder / "s.tgz", {"image": image, "stemcell.MF": MANIFEST})
    (folder / "work").mkdir()
    made, _ = convert(stemcell, folder / "work", means(LIMIT))
    oci_layout.put(made, folder / "layout", "x")
    _run("skopeo", "inspect", f"oci:{folder}/layout:x")
    _run("umoci", "unpack", "--image", f"{folder}/layout:x", str(folder / "bundle"))
    assert _for_others(folder / "bundle/rootfs/opt/odd") == _for_others(folder / "tree/opt/odd")


def _for_others(folder: Path) -> list[tuple[bytes, About]]:
    """Return all that umoci keeps.

    It writes holes as zeros, and loses attributes with an equals sign in their names.
    """
    kept = []
    for name, about in sorted(seen(folder).items()):
        xattrs = {key: value for key, value in about.xattrs.items() if not set("%=") & set(key)}
        kept.append((name, about._replace(xattrs=xattrs, has_holes=False)))
    return kept


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


# Nothing outside


def _hostile(members: list[tuple[str, bytes, str]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, member_type, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = member_type, target, 0o6777
            info.uid, info.gid = os.geteuid(), os.getegid()
            data = b"escaped" if member_type == tarfile.REGTYPE else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), 1)


_PARTS = ("etc", "a", "b", "..", ".", "OUTSIDE", "kept", "passwd", "")
_paths = st.builds(
    lambda start, parts: start + "/".join(parts),
    st.sampled_from(["", "/", "./", "../", "../../"]),
    st.lists(st.sampled_from(_PARTS), min_size=1, max_size=4),
)
_links = _paths | st.sampled_from(["OUTSIDE", "OUTSIDE/kept", "/etc/passwd", "../outside", ".."])
_types = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])


@stable(150)
@given(st.lists(st.tuples(_paths, _types, _links), min_size=1, max_size=7))
def test_nothing_gets_outside(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes, str]]
) -> None:
    _require_inside(tmp_path_factory.mktemp("hostile"), members)


@pytest.mark.parametrize(
    "members",
    [
        [("a", tarfile.SYMTYPE, "OUTSIDE"), ("a/new", tarfile.REGTYPE, "")],
        [("a", tarfile.SYMTYPE, "../outside"), ("a/kept", tarfile.REGTYPE, "")],
        [("a", tarfile.SYMTYPE, ".."), ("a/outside/kept", tarfile.REGTYPE, "")],
        [("a", tarfile.SYMTYPE, "."), ("b", tarfile.SYMTYPE, "a/.."), ("b/x", tarfile.REGTYPE, "")],
        [("a", tarfile.LNKTYPE, "OUTSIDE/kept"), ("a", tarfile.REGTYPE, "")],
        [("a", tarfile.LNKTYPE, "../outside/kept"), ("a", tarfile.REGTYPE, "")],
        [("a", tarfile.SYMTYPE, "OUTSIDE/kept"), ("b", tarfile.LNKTYPE, "a")],
        [("a", tarfile.SYMTYPE, "OUTSIDE"), ("a", tarfile.DIRTYPE, ""), ("a/kept", b"0", "")],
        [("../outside/kept", tarfile.REGTYPE, ""), ("OUTSIDE/kept", tarfile.REGTYPE, "")],
        [(".", tarfile.SYMTYPE, "OUTSIDE"), ("./kept", tarfile.REGTYPE, "")],
        [("/etc/passwd", tarfile.REGTYPE, ""), ("x", tarfile.LNKTYPE, "/etc/passwd")],
    ],
)
def test_known_ways_out_are_closed(tmp_path: Path, members: list[tuple[str, bytes, str]]) -> None:
    _require_inside(tmp_path, members)


def _require_inside(place: Path, members: list[tuple[str, bytes, str]]) -> None:
    outside, inside = place / "outside", place / "inside"
    for folder in (outside, inside):
        folder.mkdir()
    (outside / "kept").write_text("kept")
    before = seen(outside), os.lstat("/etc/passwd").st_nlink, os.lstat("/etc/passwd").st_mtime_ns
    replaced = [
        (
            name.replace("OUTSIDE", str(outside)),
            member_type,
            target.replace("OUTSIDE", str(outside)),
        )
        for name, member_type, target in members
    ]
    image = io.BytesIO(_hostile(replaced))
    tried(lambda: unpack(image, "the image", inside, LIMIT), "the image")
    after = seen(outside), os.lstat("/etc/passwd").st_nlink, os.lstat("/etc/passwd").st_mtime_ns
    assert after == before
    assert sorted(path.name for path in place.iterdir()) == ["inside", "outside"]


def test_whiteouts_are_nothing_in_a_root_file_system(tmp_path: Path) -> None:
    plain = tar({"a": b"a", ".wh.a": b"", "b/.wh..wh..opq": b"", "b/c": b"c"})
    unpack(io.BytesIO(gzip.compress(plain)), "the image", tmp_path, LIMIT)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "c"]
