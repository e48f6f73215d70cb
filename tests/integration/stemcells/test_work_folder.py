"""The work folder of a stemcell's build: what was mounted in it survives its removal."""

import subprocess
from pathlib import Path

import pytest

from cpi.host import kernel, syscalls
from testing.stemcells import stemcell_host


@pytest.mark.parametrize("name", ["proc", "a folder"])
def test_mounts_of_a_killed_build_are_left_alone(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    with stemcell_host.work_folder() as work:
        target = work / "root" / name
        target.mkdir(parents=True)
        # Of the same file system, so that --one-file-system alone would not save it.
        subprocess.run(["mount", "--bind", str(outside), str(target)], check=True)
        assert (target / "file").exists()
    assert not work.exists()
    assert (outside / "file").exists()
    assert not any(mount.target.startswith(str(work)) for mount in syscalls.mounts("self"))


def test_a_folder_on_a_file_system_of_its_own_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    syscalls.mount("tmpfs", folder, "tmpfs", kernel.MS_NODEV)
    (folder / "file").touch()
    stemcell_host.remove_folder(folder)
    assert not folder.exists()
