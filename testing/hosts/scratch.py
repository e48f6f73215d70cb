"""A new file system for a benchmark, so that figures do not depend on what the machine has.

They would, and a lot: ext4 without a journal, as some cloud images have it, skips the inodes of
files deleted in the last minutes one by one (fs/ext4/ialloc.c, recently_deleted), and unpacking a
stemcell then takes five times as long after one has been deleted.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 32 << 30  # bytes, of a sparse file: it takes only what is written


@contextmanager
def file_system() -> Iterator[Path]:
    """Put temporary files on a new ext4 until the context ends; yield its folder.

    Its image is in the folder for temporary files. Raises CalledProcessError.
    """
    outer = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="bosh-cpi-bench-") as name:
        image, folder = Path(name, "image"), Path(name, "mnt")
        folder.mkdir()
        with image.open("wb") as file:
            file.truncate(SIZE)
        make = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-E", "nodiscard", str(image)]
        # The kernel would initialise the inode tables while we measure.
        mount = ["mount", "-o", "loop,noatime,noinit_itable", str(image), str(folder)]
        for argv in (make, mount):
            subprocess.run(argv, check=True, capture_output=True, text=True)
        try:
            tempfile.tempdir = str(folder)
            yield folder
        finally:
            tempfile.tempdir = outer
            subprocess.run(["umount", str(folder)], check=True, capture_output=True, text=True)
