"""Files of an untrusted root file system, reached without ever leaving it.

A stemcell may hold any link: `/etc -> ../../..`, `/var/vcap -> /root`. openat2(2) with
RESOLVE_IN_ROOT resolves each path as if the root were `/` (Linux 5.6 and newer).
"""

import ctypes
import errno
import os
import stat
from io import FileIO
from pathlib import Path

_SYS_OPENAT2 = 437  # the same on every architecture
_TRIES = 1000  # one in a thousand fails on a busy machine
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("flags", "mode", "resolve"))


_libc = ctypes.CDLL(None, use_errno=True)


class Root:
    """A root file system opened at a folder. Paths are absolute, as its own programs see them.

    owner: user and group id of what is written. Methods raise OSError like the functions of `os`;
    FileNotFoundError where nothing is.
    """

    def __init__(self, folder: Path, owner: int = 0) -> None:
        self.owner = owner
        self._fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> "Root":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """Return the first `limit` bytes of a regular file, links followed inside the root."""
        with self.open(path) as file:
            return file.read(limit)

    def open(self, path: str) -> FileIO:
        """Open a regular file to read, links followed inside the root."""
        # Opening has side effects: a FIFO blocks, a watchdog's device node starts it.
        descriptor = self._open(path, os.O_PATH)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileNotFoundError(f"{path} is not a regular file")
            return FileIO(f"/proc/self/fd/{descriptor}", "r")
        finally:
            os.close(descriptor)

    def folder(self, path: str) -> int:
        """Return a descriptor (O_PATH) of a folder, which the caller closes."""
        return self._open(path, os.O_PATH | os.O_DIRECTORY)

    def exists(self, path: str) -> bool:
        """Tell whether something is there, links followed inside the root."""
        try:
            os.close(self._open(path, os.O_PATH))
        except OSError:
            return False
        return True

    def link_target(self, path: str) -> str | None:
        """Return where a symbolic link points, or None for anything else."""
        folder, name = os.path.split(path)
        try:
            parent = self._open(folder, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            return os.readlink(name, dir_fd=parent)
        except OSError:
            return None
        finally:
            os.close(parent)

    def make_folder(self, path: str, mode: int = 0o755) -> None:
        """Create a folder and its missing parents."""
        folder, name = os.path.split(path.rstrip("/"))
        if not name or self.exists(path):
            return
        self.make_folder(folder)
        parent = self._open(folder, os.O_PATH | os.O_DIRECTORY)
        try:
            os.mkdir(name, mode, dir_fd=parent)
            if self.owner:
                os.chown(name, self.owner, self.owner, dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a regular file of the owner atomically, in place of anything of that name."""
        folder, name = os.path.split(path)
        self.make_folder(folder)
        parent = self._open(folder, os.O_PATH | os.O_DIRECTORY)
        fresh = f".{name}.{os.getpid()}"
        try:
            fd = os.open(
                fresh,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=parent,
            )
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                if self.owner:
                    os.fchown(file.fileno(), self.owner, self.owner)
                os.fchmod(file.fileno(), mode)
            os.replace(fresh, name, src_dir_fd=parent, dst_dir_fd=parent)
        finally:
            os.close(parent)

    def own(self) -> None:
        """Give the root folder itself to the owner."""
        os.chown(f"/proc/self/fd/{self._fd}", self.owner, self.owner)

    def _open(self, path: str, flags: int) -> int:
        how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        for _ in range(_TRIES):
            fd: int = _libc.syscall(
                _SYS_OPENAT2, self._fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
            )
            if fd >= 0:
                return fd
            number = ctypes.get_errno()
            # A rename or mount anywhere, while a ".." was resolved.
            if number != errno.EAGAIN:
                break
        raise OSError(number, os.strerror(number), path)
