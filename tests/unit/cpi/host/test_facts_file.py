"""Facts are kept whole, whatever happens to the host."""

import json
import os
from pathlib import Path

import pytest

from cpi.errors import CloudError, NoDiskSpace
from cpi.host.facts_file import read_facts, write_facts


def test_facts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    assert read_facts(path) is None
    write_facts(path, {"attached_to": "some-vm-1"})
    assert read_facts(path) == {"attached_to": "some-vm-1"}
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["{", "[]"])
def test_corrupt_facts_are_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(content)
    with pytest.raises(CloudError, match=f"{path} are damaged"):
        read_facts(path)


def test_facts_are_written_into_their_own_block_when_the_host_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "facts.json"
    write_facts(path, {"attached_to": "some-vm-1"})

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    real = os.fsync
    calls = iter((full, real, full, full))
    monkeypatch.setattr(os, "fsync", lambda fd: next(calls)(fd))
    write_facts(path, {"attached_to": ""})
    assert json.loads(path.read_text()) == {"attached_to": ""}
    with pytest.raises(NoDiskSpace):
        write_facts(path, {"note": "x" * 10000})
    with pytest.raises(NoDiskSpace):
        write_facts(tmp_path / "new.json", {})
    assert list(tmp_path.iterdir()) == [path]
