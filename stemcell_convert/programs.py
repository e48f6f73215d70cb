"""Runs other programs."""

import subprocess
from typing import BinaryIO

from stemcell_convert.stemcell_errors import StemcellError

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def run(argv: list[str], hint: str) -> bytes:
    """Run a program and return its stdout. Raises StemcellError; `hint` is for a missing one."""
    try:
        done = subprocess.run(argv, capture_output=True, env=ENVIRONMENT, check=False)
    except FileNotFoundError:
        raise StemcellError(f"{argv[0]} is not installed; {hint}") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()[-500:]
        raise StemcellError(f"{argv[0]} {argv[1]} failed: {reason or done.returncode}")
    return done.stdout


def last_lines(file: BinaryIO) -> str:
    """Return the last three lines of what a program wrote to a file."""
    file.seek(max(0, file.seek(0, 2) - 4096))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return "; ".join(lines[-3:])
