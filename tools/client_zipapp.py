"""Make the thin client one file, `cpi.pyz`: `python -m tools.client_zipapp [FILE]`.

It has what a client needs of the package `cpi` and nothing else, so it runs on any Python from 3.10
on without an installation. The same sources give the same bytes.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from testing.repository import REPOSITORY

# main.py and what it imports on its way to the service; a test checks that none is missing.
MODULES = (
    "__init__",
    "cid",
    "client/__init__",
    "client/endpoint",
    "client/forward",
    "client/installed",
    "documents",
    "errors",
    "log",
    "main",
    "text",
    "version",
)

_START = b"#!/usr/bin/env python3\n"
_MAIN = "from cpi.main import main\n\nmain()\n"
_WHEN = (1980, 1, 1, 0, 0, 0)  # the first that a zip file knows


def build(path: Path) -> None:
    """Write the zipapp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(_START)
        # Not compressed: inflating costs each call more than reading a few KiB.
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo("__main__.py", _WHEN), _MAIN)
            for module in MODULES:
                source = (REPOSITORY / "cpi" / f"{module}.py").read_text()
                archive.writestr(zipfile.ZipInfo(f"cpi/{module}.py", _WHEN), source)
    path.chmod(0o755)


def main() -> None:
    """Write the file that the command line names, or build/cpi.pyz."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "build" / "cpi.pyz"
    build(path)
    print(path)


if __name__ == "__main__":
    main()
