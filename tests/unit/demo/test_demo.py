"""What the demo prints and compares, and how it takes a stemcell apart."""

import io
import tarfile
from pathlib import Path

import pytest

from demo.demo_text import leftovers, network_of, shortened
from testing.stemcells.stemcell_source import StemcellUnusable, field_of, key_of, opened

VM = "containerd-vm-783bec243619f58701168c7fb092751d"
MANIFEST = "---\nname: bosh-warden-jammy\nversion: '1.234'\ncloud_properties:\n  name: other\n"


def tarball(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (VM, "containerd-vm-783bec…"),
        ([VM, {"eth": {"ip": "10.0.0.2"}}], "[containerd-vm-783bec…, {eth: {ip: 10.0.0.2}}]"),
        ("/tmp/a/b/c/image", "…/c/image"),
        (f"/warden-cpi-dev/{VM}", "/warden-cpi-dev/containerd-vm-783bec…"),
        ("x" * 70, "x" * 63 + "…"),
    ],
)
def test_shortened(value: object, text: str) -> None:
    assert shortened(value) == text


def test_secrets_are_not_shown() -> None:
    env = {"bosh": {"mbus": {"urls": ["https://mbus:secret@0.0.0.0"]}, "password": "secret"}}
    assert shortened(env) == "{bosh: {mbus: …, password: …}}"


def test_network_of() -> None:
    manual = network_of("10.1.2.0/24", "10.1.2.9")
    assert (manual["type"], manual["netmask"], manual["gateway"]) == (
        "manual",
        "255.255.255.0",
        "10.1.2.1",
    )
    assert network_of("10.1.2.0/24", None)["type"] == "dynamic"


def test_leftovers_are_what_was_not_there_before() -> None:
    before = {"mounts": {"/a"}, "gone": {"x"}}
    after = {"mounts": {"/a", "/b"}, "tasks": {"vm"}, "gone": set[str]()}
    assert leftovers(before, after) == {"mounts": {"/b"}, "tasks": {"vm"}, "gone": set()}


def test_a_stemcell_is_taken_apart(tmp_path: Path) -> None:
    path = tarball(
        tmp_path / "stemcell.tgz",
        {
            "./stemcell.MF": MANIFEST.encode(),
            "image": b"bytes",
            "../evil": b"",
            "packages.txt": b"",
        },
    )
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    stemcell = opened(path, folder)
    assert stemcell.image.read_bytes() == b"bytes"
    assert (stemcell.name, stemcell.version, stemcell.size) == ("bosh-warden-jammy", "1.234", 5)
    assert sorted(file.name for file in folder.iterdir()) == ["image", "stemcell.MF"]
    assert not (tmp_path / "deep" / "evil").exists()


def test_what_is_no_stemcell_is_refused(tmp_path: Path) -> None:
    empty = tarball(tmp_path / "empty.tgz", {"stemcell.MF": b""})
    with pytest.raises(StemcellUnusable, match=r"empty\.tgz is no stemcell: there is no image"):
        opened(empty, tmp_path)
    whole = tarball(tmp_path / "whole.tgz", {"image": bytes(range(256)) * 4096})
    cut = tmp_path / "cut.tgz"
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(StemcellUnusable, match=r"cut\.tgz is no stemcell"):
        opened(cut, tmp_path)
    with pytest.raises(StemcellUnusable, match=r"none\.tgz"):
        opened(tmp_path / "none.tgz", tmp_path)


def test_field_of_reads_the_top_level_only() -> None:
    assert field_of(MANIFEST, "name") == "bosh-warden-jammy"
    assert field_of("  name: nested\n", "name") == ""
    assert field_of('version: "2"\n', "version") == "2"


def test_the_cache_key_follows_names_bytes_and_modes(tmp_path: Path) -> None:
    file, other_file = tmp_path / "one", tmp_path / "two"
    file.write_text("1")
    other_file.write_text("2")
    key = key_of([file, other_file], tmp_path)
    assert key_of([other_file, file], tmp_path) == key
    file.chmod(0o755)
    changed = key_of([file, other_file], tmp_path)
    assert changed != key
    file.chmod(0o644)
    other_file.write_text("3")
    assert key_of([file, other_file], tmp_path) not in (key, changed)
