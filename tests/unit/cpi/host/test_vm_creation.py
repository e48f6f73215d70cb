"""The making of a VM, which leaves nothing when it fails, and a mark when it is killed."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cpi.host import vm_creation
from cpi.log import Log


class Steps:
    """What is done to a VM's folder and networks, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[str] = []

    def make(self) -> None:
        self.done.append("make")
        vm_creation.make(self.folder)

    def connect(self) -> str:
        self.done.append("connect")
        return threading.current_thread().name

    def step(self, name: str) -> Callable[[], None]:
        return lambda: self.done.append(name)


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path / "vms" / "some-vm-1")


def create(steps: Steps, *, fail: bool = False) -> None:
    with vm_creation.creation(
        steps.folder,
        Log("error"),
        make=steps.make,
        remove=steps.step("remove"),
        connect=steps.connect,
        disconnect=steps.step("disconnect"),
    ) as (undo, connecting):
        undo.push(steps.step("undo the rest"))
        assert vm_creation.is_marked(steps.folder)
        assert connecting.result() != threading.current_thread().name
        if fail:
            raise RuntimeError("the rest failed")


def test_a_vm_that_is_made_keeps_everything_but_the_mark(steps: Steps) -> None:
    create(steps)
    assert steps.done == ["make", "connect"]
    assert list(steps.folder.iterdir()) == []
    assert steps.folder.stat().st_mode & 0o777 == 0o700


def test_what_fails_is_undone_last_first(steps: Steps) -> None:
    with pytest.raises(RuntimeError, match="the rest failed"):
        create(steps, fail=True)
    assert steps.done == ["make", "connect", "undo the rest", "disconnect", "remove"]
    assert vm_creation.is_marked(steps.folder)


def test_a_folder_that_cannot_be_made_is_removed_and_nothing_connected(steps: Steps) -> None:
    vm_creation.make(steps.folder)
    with pytest.raises(FileExistsError):
        create(steps)
    assert steps.done == ["make", "remove"]


def test_a_mark_needs_a_folder(tmp_path: Path) -> None:
    vm_creation.begin(tmp_path / "gone")
    vm_creation.end(tmp_path / "gone")
    assert not vm_creation.is_marked(tmp_path / "gone")
