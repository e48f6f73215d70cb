"""The folder of an installed CPI: releases beside one another, and `current`, which names one.

tools/install makes it. A new release is complete before `current` changes, and the one before it
stays, for calls that still run in it.
"""

import shutil
import sys
from functools import partial
from pathlib import Path

from cpi.setup.steps import Step, System

LINKS = ("/usr/local/bin/cpi", "/usr/local/bin/bosh-cpi")
_RELEASES, _CURRENT = "releases", "current"


def prefix() -> Path | None:
    """Return the folder of the installation that runs, None for a checkout."""
    release = Path(sys.prefix)
    return release.parent.parent if release.parent.name == _RELEASES else None


def program() -> str:
    """Return the path of this installation's bosh-cpi, the same after an upgrade."""
    folder = prefix()
    return str((folder / _CURRENT if folder else Path(sys.prefix)) / "bin/bosh-cpi")


def program_files(system: System) -> list[Step]:
    """Return the steps that remove the installation that runs, and the links to it."""
    folder = prefix()
    if folder is None:
        return []
    links = [link for link in LINKS if _leads_into(system.path(link), folder)]
    return [
        *(Step(f"remove {link}", system.path(link).unlink) for link in links),
        # Last: this program is in it, and cannot load any more of itself then.
        Step(f"remove {folder}", partial(shutil.rmtree, folder)),
    ]


def _leads_into(link: Path, folder: Path) -> bool:
    return link.is_symlink() and link.readlink().is_relative_to(folder)
