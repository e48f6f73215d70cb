"""CIDs."""

import pytest

from cpi import cid
from cpi.errors import CPIError, DiskNotFound, StemcellNotFound, VMNotFound
from cpi.text import shown
from runtimes import catalog


def test_new_cids_route_back() -> None:
    for name in catalog.REGISTRY:
        for resource in (cid.VM, cid.DISK, cid.STEMCELL, cid.SNAPSHOT):
            made = cid.new(name, resource)
            assert cid.runtime_of(made, resource) == name
            assert made != cid.new(name, resource)
            assert len(made) <= 76  # containerd's limit


def test_content_can_name_a_cid() -> None:
    assert cid.new("containerd", cid.STEMCELL, "abc1") == "containerd-stemcell-abc1"


@pytest.mark.parametrize(
    ("resource", "error"),
    [
        (cid.VM, VMNotFound),
        (cid.DISK, DiskNotFound),
        (cid.STEMCELL, StemcellNotFound),
        (cid.SNAPSHOT, CPIError),
    ],
)
@pytest.mark.parametrize(
    "odd",
    [
        "",
        "{resource}",
        "containerd-{resource}-",
        "containerd-{resource}-1/../2",
        "containerd-{resource}-1\n",
        "containerd-{resource}-A",
        "containerd-{resource}-1-2",
        "Containerd-{resource}-1",
        "containerd-other-1",
        "../containerd-{resource}-1",
        "containerd-{resource}-" + "1" * 49,
        "containerd-{resource}-é",
        "x" * 100_000,
    ],
)
def test_anything_else_is_not_found(resource: str, error: type[CPIError], odd: str) -> None:
    with pytest.raises(error) as raised:
        cid.runtime_of(odd.replace("{resource}", resource), resource)
    assert type(raised.value) is error
    assert len(raised.value.message) < 300
    assert raised.value.message.isascii() or "…" in raised.value.message


def test_shown_is_safe_and_short() -> None:
    assert shown("a'b\n<é>") == '"a\'b\\n<\\xe9>"'
    assert len(shown("x" * 1000, 20)) <= 22
