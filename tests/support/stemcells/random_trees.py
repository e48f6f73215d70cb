"""Random trees of files with all attributes, written to a disk and read again."""

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
MIB = 1 << 20
_LONGEST_PATH = 3500  # bytes; the kernel takes 4096 at once
# GNU tar makes two of a FIFO or a device node with two names; no root file system has those.
_LINKED = ("file", "sparse", "link")
# ext4 has times from 1901 to 2446, to the nanosecond.
_SECOND = 10**9
_TIMES = st.sampled_from([0, 1, -1, -_SECOND, 1234567890_123456789, -2_000_000_000 * _SECOND])
_ANY_TIME = _TIMES | st.integers(-(1 << 31) * _SECOND, (1 << 33) * _SECOND)

_ODD_NAMES = (
    *(b"plain", b"-rf", b"--checkpoint=1", b" ", b"a b ", b"new\nline", b"'\"$(x)`", b"\\", b"*?["),
    *(
        b"\xff\xfe",
        "é".encode(),
        "e\u0301".encode(),
        b"n" * 255,
        b"\xe9" * 200,
        b"=%3D",
        b"~",
        b"#",
    ),
    *(b"PaxHeaders", b".x", b"...", b"\x01\x7f", b"@LongLink", b"lost+found "),
)
_NAMES = st.sampled_from(_ODD_NAMES) | st.binary(min_size=1, max_size=6).map(
    lambda name: name.replace(b"/", b"_").replace(b"\0", b"_").replace(b".", b",")
)
_TARGETS = st.sampled_from(
    [b"/etc/passwd", b"../../..", b"plain", b"/", b"..", b"\xff", b"t" * 300, b"a\nb", b"./x/../y"]
)
_CONTENTS = _TARGETS | st.binary(max_size=40) | st.integers(1, 70_000).map(lambda size: b"x" * size)


@dataclass
class Node:
    """One file of any type; `links` are the names of hard links to it."""

    type: str
    mode: int
    time: int  # nanoseconds
    owner: tuple[int, int]
    xattrs: dict[str, bytes]
    content: bytes = field(default=b"", repr=False)
    holes: list[tuple[int, bytes]] = field(default_factory=list)
    children: "Children" = field(default_factory=dict)
    links: list[bytes] = field(default_factory=list)


Children = dict[bytes, Node]


def _xattrs(root: bool) -> st.SearchStrategy[dict[str, bytes]]:
    names = st.sampled_from(["user.note", "user.a b", "user.x=y", "user.é", "user.%3D"])
    some = st.dictionaries(names, st.binary(min_size=1, max_size=30), max_size=2)
    capable = st.just({"security.capability": CAPABILITY})
    return st.one_of(st.just({}), some, capable) if root else st.just({}) | some


@st.composite
def _nodes(
    draw: st.DrawFn, types: tuple[str, ...], children: st.SearchStrategy[Children], root: bool
) -> Node:
    ids = st.sampled_from([0, 1, 65534, 56789, (1 << 31) - 1, 4_000_000_000])
    return Node(
        type=draw(st.sampled_from(types)),
        mode=draw(st.integers(0, 0o7777) | st.sampled_from([0o4755, 0o2755, 0o1777, 0o644])),
        time=draw(_ANY_TIME),
        owner=draw(st.tuples(ids, ids) if root else st.just((os.geteuid(), os.getegid()))),
        xattrs=draw(_xattrs(root)),
        content=draw(_CONTENTS),
        holes=draw(
            st.lists(st.tuples(st.integers(0, 9), st.binary(min_size=1, max_size=9)), max_size=2)
        ),
        children=draw(children),
        links=draw(st.just([]) | st.lists(_NAMES, max_size=2)),
    )


def trees(root: bool) -> st.SearchStrategy[Node]:
    """Return a strategy for trees; `root`: also those that only root can make."""
    types = ("file", "file", "sparse", "link", "link", "fifo", *(("char", "block") if root else ()))
    folder = ("folder",)
    inner: st.SearchStrategy[Node] = st.recursive(
        _nodes(types, st.just({}), root),
        lambda node: _nodes(folder, st.dictionaries(_NAMES, node, max_size=4), root),
        max_leaves=14,
    )
    return _nodes(folder, st.dictionaries(_NAMES, inner, min_size=1, max_size=5), root)


def make(node: Node, path: bytes, root: bool) -> None:
    """Make a tree at a path that does not exist, or is a folder."""
    if node.type == "folder":
        os.makedirs(path, exist_ok=True)
        for name, child in node.children.items():
            if len(path) < _LONGEST_PATH:
                make(child, path + b"/" + name, root)
        for name, child in node.children.items():
            for link in child.links if child.type in _LINKED else ():
                if os.path.lexists(path + b"/" + name) and not os.path.lexists(path + b"/" + link):
                    os.link(path + b"/" + name, path + b"/" + link, follow_symlinks=False)
    elif node.type == "link":
        os.symlink(node.content.replace(b"\0", b"_")[:4000] or b"x", path)
    elif node.type == "fifo":
        os.mkfifo(path)
    elif node.type in ("char", "block"):
        format_bits = stat.S_IFCHR if node.type == "char" else stat.S_IFBLK
        os.mknod(path, format_bits, os.makedev(len(node.content) % 256, node.mode))
    else:
        with open(path, "xb") as file:
            file.write(node.content)
            for number, data in node.holes if node.type == "sparse" else ():
                file.seek(number * 100_000)
                file.write(data)
            if node.type == "sparse":
                file.truncate(MIB)
    _dress(node, path, root)


def _dress(node: Node, path: bytes, root: bool) -> None:
    if root:
        os.lchown(path, *node.owner)
    if node.type != "link":
        # Users other than root must be able to read it.
        os.chmod(path, node.mode if root else node.mode | 0o700)
    if node.type in ("file", "sparse", "folder"):
        for name, value in node.xattrs.items():
            if name != "security.capability" or node.type != "folder":
                os.setxattr(path, name, value)
    os.utime(path, ns=(0, node.time), follow_symlinks=False)


class About(NamedTuple):
    """All attributes of a file; `first` is the first of its `names` names."""

    mode: int
    owner: tuple[int, int]
    time: int
    xattrs: dict[str, bytes]
    content: object
    first: bytes
    names: int
    has_holes: bool


def seen(folder: Path) -> dict[bytes, About]:
    """Return the attributes that a copy must keep of a folder and all files below, by name."""
    abouts: dict[bytes, About] = {}
    first: dict[int, bytes] = {}
    top = os.fsencode(folder)
    for parent, folders, files in os.walk(top):
        for path in (parent, *(parent + b"/" + name for name in sorted(folders + files))):
            name = path[len(top) :]
            if name not in abouts:
                abouts[name] = _about(path, first, name)
    return abouts


def _about(path: bytes, first: dict[int, bytes], name: bytes) -> About:
    about = os.lstat(path)
    format_bits = stat.S_IFMT(about.st_mode)
    content: object = about.st_rdev
    if format_bits == stat.S_IFREG:
        with open(path, "rb") as file:
            content = hashlib.sha256(file.read()).hexdigest()
    elif format_bits == stat.S_IFLNK:
        content = os.readlink(path)
    names = os.listxattr(path, follow_symlinks=False)
    xattrs = {xattr: os.getxattr(path, xattr, follow_symlinks=False) for xattr in names}
    same = first.setdefault(about.st_ino, name) if format_bits != stat.S_IFDIR else name
    many = about.st_nlink if format_bits != stat.S_IFDIR else 0
    has_holes = about.st_blocks * 512 < about.st_size
    owner = (about.st_uid, about.st_gid)
    return About(about.st_mode, owner, about.st_mtime_ns, xattrs, content, same, many, has_holes)
