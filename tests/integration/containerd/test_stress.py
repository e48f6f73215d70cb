"""Many calls at once, as a director makes them."""

import gzip
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.containerd.machine import Machine

VMS = 50
AT_ONCE = 8


def test_fifty_vms_eight_at_a_time(machine: Machine, stemcell: str, clean: None) -> None:
    networks = {"n": {"type": "dynamic"}}

    def life(number: int) -> tuple[str, str]:
        cid, actual = machine.call(
            "create_vm", f"agent-{number}", stemcell, {"ephemeral_disk": 32}, networks, [], {}
        )
        assert machine.call("has_vm", cid)
        machine.call("delete_vm", cid)
        assert not machine.call("has_vm", cid)
        return cid, actual["n"]["ip"]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        lives = list(pool.map(life, range(VMS)))
    assert len({cid for cid, _ in lives}) == VMS


def test_stemcells_imported_at_the_same_time(
    machine: Machine, runit_image: Path, tmp_path: Path, clean: None
) -> None:
    """They share the layer of adaptations, and two of them are the same."""
    images = [runit_image, tmp_path / "other", tmp_path / "copy"]
    with gzip.open(runit_image) as source, gzip.open(images[1], "wb", 1) as target:
        shutil.copyfileobj(source, target)
    shutil.copy(images[1], images[2])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        cids = list(pool.map(lambda path: machine.call("create_stemcell", str(path), {}), images))
    assert cids[1] == cids[2] != cids[0]
    machine.call("delete_stemcell", cids[1])


def test_one_disk_wanted_by_four_vms_at_once(machine: Machine, stemcell: str, clean: None) -> None:
    vms = [machine.create_vm(stemcell) for _ in range(4)]
    disk = machine.create_disk()

    def attach(number: int) -> bool:
        response = machine.host.cpi("attach_disk", vms[number % 4].cid, disk)
        return response["error"] is None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        won = {number % 4 for number, ok in enumerate(pool.map(attach, range(8))) if ok}
    assert len(won) == 1
