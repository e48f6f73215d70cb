"""A stemcell's image that attacks the host when a VM of it starts."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

RESULTS = "/results"  # in the VM: a line for each script with its number and status
DISK = "attack-disk"  # a node of a block device of the host, for everybody, at the root

_INIT = "usr/sbin/runsvdir-start"
_PROGRAM = f"""\
#!/bin/sh
for script in /attacks/*; do
    timeout 60 sh "$script" > /dev/null 2>&1 < /dev/null
    echo "${{script##*/}} $?"
done > {RESULTS}.new
mv {RESULTS}.new {RESULTS}
exec sleep infinity
"""


def write(path: Path, image: Path, scripts: Sequence[str]) -> Path:
    """Write the image of a runit stemcell with another init, which runs the scripts as root."""
    files = {f"attacks/{number}": script for number, script in enumerate(scripts)}
    with (
        tarfile.open(image, "r|gz") as source,
        tarfile.open(path, "w:gz", compresslevel=1) as target,
    ):
        for member in source:
            if member.name.removeprefix("./") != _INIT:
                target.addfile(member, source.extractfile(member) if member.isfile() else None)
        for name, content in {_INIT: _PROGRAM, **files}.items():
            info = tarfile.TarInfo(f"./{name}")
            info.mode, info.size = 0o755, len(content)
            target.addfile(info, io.BytesIO(content.encode()))
        node = tarfile.TarInfo(f"./{DISK}")
        node.type, node.mode, node.devmajor, node.devminor = tarfile.BLKTYPE, 0o666, 7, 0
        target.addfile(node)
    return path
