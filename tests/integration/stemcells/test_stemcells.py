"""create_stemcell on a real containerd."""

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.support.containerd.machine import Machine, failing, sha_of


def _tar(path: Path, names: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_same_stemcell_again_gives_the_same_cid(
    machine: Machine, stemcell: str, image: Path, tmp_path: Path
) -> None:
    copy = shutil.copy(image, tmp_path / "image")
    before = machine.stored()
    assert machine.call("create_stemcell", str(copy), {"name": "other"}) == stemcell
    assert machine.stored() == before


def test_the_tarballs_bytes_are_the_layer(machine: Machine, stemcell: str, image: Path) -> None:
    manifest = _manifest(machine, stemcell)
    assert manifest["layers"][0]["digest"] == f"sha256:{sha_of(image)}"
    assert manifest["layers"][1]["size"] < 100_000
    # stemcell.MF beside the image overrides the call's cloud_properties.
    assert manifest["annotations"]["bosh.stemcell.name"].startswith("bosh-warden-boshlite-")
    assert manifest["annotations"]["bosh.stemcell.operating_system"].startswith("debian-")


def _reference(stemcell: str) -> str:
    """Return the image's name in containerd."""
    return f"bosh.local/stemcell/{stemcell.rsplit('-', 1)[1]}:latest"


def _manifest(machine: Machine, stemcell: str) -> dict:  # type: ignore[type-arg]
    name = _reference(stemcell)
    digest = next(
        line.split()[2] for line in machine.ctr("images", "ls").splitlines() if name in line
    )
    return dict(json.loads(machine.ctr("content", "get", digest)))


def test_the_image_runs_under_ctr(machine: Machine, stemcell: str) -> None:
    name = _reference(stemcell)
    options = ("--rm", "--cgroup", f"{machine.host.cgroup}/by-hand")
    out = machine.ctr("run", *options, name, "by-hand", "cat", "/var/vcap/bosh/agent.json")
    assert "warden-cpi-agent-env.json" in out


def test_garbage_collection_leaves_a_stemcell_alone(machine: Machine, stemcell: str) -> None:
    # Deleting any image with --sync runs the garbage collector before it returns.
    name = _reference(stemcell)
    machine.ctr("images", "tag", name, "collect:me")
    before = machine.stored()
    machine.ctr("images", "rm", "--sync", "collect:me")
    assert machine.stored() == [line for line in before if line != "collect:me"]
    machine.create_vm(stemcell)
    machine.delete_all()


def test_deleting_leaves_nothing_and_may_be_repeated(
    machine: Machine, tmp_path: Path, image: Path, untouched: None
) -> None:
    # The same root file system in other gzip bytes is another stemcell.
    other = tmp_path / "image"
    with gzip.open(image) as source, gzip.open(other, "wb", compresslevel=1) as target:
        shutil.copyfileobj(source, target)
    cid = machine.call("create_stemcell", str(other), {})
    machine.call("delete_stemcell", cid)
    machine.call("delete_stemcell", cid)


@pytest.mark.parametrize("keep", [0.3, 0.999])
def test_truncated_stemcell(
    machine: Machine, image: Path, tmp_path: Path, keep: float, untouched: None
) -> None:
    cut = tmp_path / "image"
    cut.write_bytes(image.read_bytes()[: int(image.stat().st_size * keep)])
    error = failing(lambda: machine.call("create_stemcell", str(cut), {}))
    assert error.type == "CloudError"
    assert str(cut) in error.message
    assert "cut short or damaged" in error.message


def test_corrupt_stemcell(machine: Machine, image: Path, tmp_path: Path, untouched: None) -> None:
    data = bytearray(image.read_bytes())
    for offset in range(len(data) // 2, len(data) // 2 + 64):
        data[offset] ^= 0xFF
    damaged = tmp_path / "image"
    damaged.write_bytes(data)
    error = failing(lambda: machine.call("create_stemcell", str(damaged), {}))
    assert error.type == "CloudError"
    assert str(damaged) in error.message


@pytest.mark.parametrize(
    ("content", "words", "error_type"),
    [
        (b"PK\x03\x04" + bytes(600), "a zip file", "NotSupported"),
        (b"QFI\xfb" + bytes(600), "qemu-img", "CloudError"),
        (b"BZh9" + bytes(600), "damaged", "CloudError"),
    ],
)
def test_what_cannot_be_imported_is_named(
    machine: Machine, tmp_path: Path, content: bytes, words: str, error_type: str, untouched: None
) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    error = failing(lambda: machine.call("create_stemcell", str(path), {}))
    assert error.type == error_type
    assert words in error.message
    assert str(path) in error.message


def test_garbage_is_refused(machine: Machine, tmp_path: Path, untouched: None) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"hello" * 100)
    error = failing(lambda: machine.call("create_stemcell", str(path), {}))
    assert error.type == "CloudError"
    assert f"{path} is neither a tar.gz nor" in error.message


def test_a_damaged_disk_in_a_tarball_is_named(
    machine: Machine, tmp_path: Path, untouched: None
) -> None:
    path = _tar(tmp_path / "image", {"root.img": b"QFI\xfb" + bytes(600)})
    error = failing(lambda: machine.call("create_stemcell", str(path), {}))
    assert error.type == "CloudError"
    assert str(path) in error.message


def test_a_root_file_system_without_init_is_refused(
    machine: Machine, tmp_path: Path, untouched: None
) -> None:
    path = _tar(tmp_path / "image", {"./etc/os-release": b"ID=none\n"})
    error = failing(lambda: machine.call("create_stemcell", str(path), {}))
    assert error.type == "CloudError"
    assert "neither systemd nor runit" in error.message


def test_a_missing_file_is_named(machine: Machine, tmp_path: Path) -> None:
    error = failing(lambda: machine.call("create_stemcell", str(tmp_path / "none"), {}))
    assert str(tmp_path / "none") in error.message


def test_a_stemcell_cannot_write_outside(machine: Machine, tmp_path: Path, untouched: None) -> None:
    target = tmp_path / "outside"
    target.mkdir()
    path = tmp_path / "image"
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo("./etc")
        link.type, link.linkname = tarfile.SYMTYPE, str(target)
        tar.addfile(link)
        for name in ("./etc/escaped", "../../../../../../../../../../tmp/bosh-cpi-escaped"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    failing(lambda: machine.call("create_stemcell", str(path), {}))
    assert list(target.iterdir()) == []
    assert not Path("/tmp/bosh-cpi-escaped").exists()


def test_versions_of_one_content_are_two_stemcells(
    machine: Machine, small_image: Path, clean: None
) -> None:
    """BOSH deletes the old one when the new one is in use."""
    first, again, second = (
        machine.call("create_stemcell", str(small_image), {"name": "s", "version": version})
        for version in ("1", "1", "2")
    )
    assert first == again != second
    machine.call("delete_stemcell", first)
    images = machine.ctr("images", "ls", "-q")
    assert first.rsplit("-", 1)[1] not in images
    assert second.rsplit("-", 1)[1] in images
    machine.call("delete_stemcell", second)
