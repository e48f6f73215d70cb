"""Who holds a stemcell."""

import threading
from pathlib import Path

from cpi.host.layout import Layout
from cpi.host.stemcell_holders import Holder, StemcellHolders

CID = "fake-stemcell-1"


def holders(folder: Path, director: str = "a", client: str = "") -> StemcellHolders:
    return StemcellHolders(Layout(folder, folder), Holder(client, director))


def test_each_director_holds_once(tmp_path: Path) -> None:
    first, second = holders(tmp_path, "a"), holders(tmp_path, "b", "guest")
    with first.importing():
        first.add(CID)
        first.add(CID)
        second.add(CID)
    assert first.others(CID) == [Holder("guest", "b")]
    assert second.others(CID) == [Holder("", "a")]
    second.drop(CID)
    second.drop(CID)
    assert first.others(CID) == []
    first.forget(CID)
    assert first.others(CID) == second.others(CID) == []


def test_a_corrupt_file_is_a_holder(tmp_path: Path) -> None:
    first = holders(tmp_path)
    with first.importing():
        first.add(CID)
    (tmp_path / "stemcells" / CID / "x").write_text("{")
    (tmp_path / "stemcells" / CID / "y.part").write_text("{")
    assert first.others(CID) == [Holder("", "x")]


def test_a_client_that_never_deletes_has_a_limit(tmp_path: Path) -> None:
    root = holders(tmp_path, "root")
    with root.importing():
        root.add(CID)
        for number in range(70):
            holders(tmp_path, str(number), "ci").add(CID)
    others = root.others(CID)
    assert len(others) == 64
    assert Holder("ci", "69") in others
    assert len(holders(tmp_path, "69", "ci").others(CID)) == 64  # root among them


def test_deleting_waits_for_imports(tmp_path: Path) -> None:
    first, second = holders(tmp_path, "a"), holders(tmp_path, "b")
    seen: list[str] = []

    def delete() -> None:
        with second.deleting():
            seen.append("deleting")

    with first.importing(), holders(tmp_path, "c").importing():
        thread = threading.Thread(target=delete)
        thread.start()
        thread.join(0.2)
        assert seen == []
    thread.join(10)
    assert seen == ["deleting"]
