"""Names that each belong to one VM."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cpi.host.reservations import Reservations


def test_one_has_it_until_it_is_released(tmp_path: Path) -> None:
    names = Reservations(tmp_path / "names")
    assert names.owner("a") == ""
    assert names.reserve("a", "vm-1") == "vm-1"
    assert names.reserve("a", "vm-2") == "vm-1"
    assert names.reserve("a", "vm-1") == "vm-1"
    assert names.reserve("b", "vm-1") == "vm-1"
    names.release("vm-2")
    names.release("vm-1")
    assert names.reserve("a", "vm-2") == "vm-2"
    assert sorted(path.name for path in (tmp_path / "names").iterdir()) == ["a"]


def test_of_many_at_once_one_wins(tmp_path: Path) -> None:
    names = Reservations(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        owners = set(threads.map(lambda number: names.reserve("a", f"vm-{number}"), range(32)))
    assert len(owners) == 1
