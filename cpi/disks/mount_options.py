"""Mount options that a manifest may give for persistent disks."""

import re

from cpi.host import kernel

# Options of every mount (mount(2)), and those that a file system gets as text. What would change
# which data is mounted, or make it unwritable, is not among them.
_FLAGS = {
    "defaults": 0,
    "rw": 0,
    "noatime": kernel.MS_NOATIME,
    "nodiratime": kernel.MS_NODIRATIME,
    "relatime": kernel.MS_RELATIME,
    "strictatime": kernel.MS_STRICTATIME,
    "lazytime": kernel.MS_LAZYTIME,
    "nodev": kernel.MS_NODEV,
    "nosuid": kernel.MS_NOSUID,
    "noexec": kernel.MS_NOEXEC,
    "sync": kernel.MS_SYNCHRONOUS,
    "dirsync": kernel.MS_DIRSYNC,
}
_TEXT = re.compile(
    r"(?:discard|nodiscard|acl|noacl|user_xattr|nouser_xattr|delalloc|nodelalloc|dioread_nolock"
    r"|auto_da_alloc|noauto_da_alloc|barrier|nobarrier|journal_checksum|journal_async_commit"
    r"|inode64|largeio|nolargeio|swalloc|wsync|ikeep|noikeep|attr2"
    r"|barrier=[01]|(?:commit|max_batch_time|min_batch_time|stripe|logbufs)=[0-9]{1,9}"
    r"|(?:logbsize|allocsize)=[0-9]{1,9}[kmg]?|data=(?:journal|ordered|writeback)"
    r"|errors=(?:remount-ro|continue))"
)


def is_known(word: str) -> bool:
    """Tell whether an option is passed on."""
    return word in _FLAGS or _TEXT.fullmatch(word) is not None


def arguments(options: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    """Return checked mount options as mount(2) takes them: flags, and text for the file system."""
    flags = 0
    for word in options:
        flags |= _FLAGS.get(word, 0)
    return flags, tuple(word for word in options if word not in _FLAGS)
