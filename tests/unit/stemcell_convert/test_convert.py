"""Stemcells become OCI images: layouts and archives, the same bytes every time."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from stemcell_convert import oci, oci_layout
from stemcell_convert.convert import convert, extract
from stemcell_convert.oci_image import Image
from stemcell_convert.stemcell_errors import LightStemcell, StemcellError
from stemcell_convert.stemcell_manifest import parse
from tests.support.stemcells.small_stemcells import MANIFEST, image, means, tarball, zipped


def made(stemcell: Path, folder: Path) -> Image:
    folder.mkdir()
    return convert(stemcell, folder, means())[0]


@pytest.fixture
def an_image(tmp_path: Path) -> Image:
    return made(tarball(tmp_path / "stemcell.tgz"), tmp_path / "work")


def test_the_same_stemcell_gives_the_same_digest_everywhere(an_image: Image) -> None:
    # A change of adapt.py, oci.py or of the labels changes it, and nothing else may.
    expected = "745a2fb7919a27a01aca21e7e1c9dcc071fbe9679c56fd0082eb652faea0f532"
    assert an_image.digest == f"sha256:{expected}"


def test_the_order_in_the_tarball_and_its_absence_change_nothing(
    an_image: Image, tmp_path: Path
) -> None:
    members = {"./stemcell.MF": MANIFEST, "packages.txt": b"", "./image": image()}
    (tmp_path / "image").write_bytes(image())
    (tmp_path / "stemcell.MF").write_bytes(MANIFEST)
    other = made(tarball(tmp_path / "other.tgz", members), tmp_path / "other")
    alone = made(tmp_path / "image", tmp_path / "alone")
    assert an_image.digest == other.digest == alone.digest


def test_a_stemcell_that_was_repacked_by_hand_is_the_same(an_image: Image, tmp_path: Path) -> None:
    folder, repacked = tmp_path / "unpacked", tmp_path / "s.tgz"
    folder.mkdir()
    subprocess.run(["tar", "-xzf", tmp_path / "stemcell.tgz", "-C", folder], check=True)
    subprocess.run(["tar", "-czf", repacked, "-C", folder, "."], check=True)
    assert made(repacked, tmp_path / "again").digest == an_image.digest


def test_the_image_says_which_stemcell_it_is(an_image: Image) -> None:
    assert an_image.labels == {
        "bosh.stemcell.name": "bosh-test-go_agent",
        "bosh.stemcell.version": "1.2",
        "bosh.stemcell.operating_system": "debian-test",
        "bosh.stemcell.api_version": "3",
        "bosh.stemcell.formats": "warden-tar",
        "bosh.stemcell.init": "runit",
        "bosh.stemcell.settings": "/var/vcap/bosh/warden-cpi-agent-env.json",
        "bosh.stemcell.source": oci.digest(image()),
        "bosh.stemcell.adaptation": "5",
        "org.opencontainers.image.title": "bosh-test-go_agent",
        "org.opencontainers.image.version": "1.2",
    }
    assert json.loads(an_image.manifest)["annotations"] == an_image.labels
    assert an_image.architecture == "amd64"
    stemcell = oci.stemcell_of(an_image.labels)
    assert stemcell.formats == ("warden-tar",)


def test_the_rootfs_is_a_layer_byte_for_byte(an_image: Image) -> None:
    assert an_image.layers[0].digest == oci.digest(image())
    assert an_image.blob(an_image.layers[0].digest).read_bytes() == image()


def test_what_is_no_stemcell_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tgz"
    for members, words in (
        ({"stemcell.MF": MANIFEST}, "has no image"),
        ({"image": image()}, "has no stemcell.MF"),
        ({"image": image(), "stemcell.MF": b"- 1"}, "no mapping"),
        ({"image": image(), "stemcell.MF": b"a: [b"}, "not YAML"),
        ({"image": b"hello" * 99, "stemcell.MF": MANIFEST}, "neither a tar.gz nor"),
        ({"image": image()[:-100], "stemcell.MF": MANIFEST}, "cut short"),
    ):
        folder = tmp_path / words.replace("/", "")
        with pytest.raises(StemcellError, match=words) as caught:
            made(tarball(path, members), folder)
        assert str(path) in str(caught.value)


def test_a_cut_tarball_is_refused(tmp_path: Path) -> None:
    path = tarball(tmp_path / "x.tgz")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(StemcellError, match="cut short"):
        made(path, tmp_path / "work")


def test_a_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    with pytest.raises(StemcellError, match="stemcell_limit"):
        convert(tarball(tmp_path / "x.tgz"), _folder(tmp_path), means(limit=50_000))


def _folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_a_light_stemcell_says_what_it_names(tmp_path: Path) -> None:
    document = b"name: a\ncloud_properties: {image_reference: 'h.io/a:1', digest: 'sha256:%s'}\n"
    members = {"image": b"", "stemcell.MF": document % (b"1" * 64)}
    with pytest.raises(LightStemcell, match=r"h\.io/a:1@sha256:111"):
        made(tarball(tmp_path / "x.tgz", members), tmp_path / "work")


def test_image_and_manifest_are_taken_out_as_bosh_does(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    path, manifest = extract(tarball(tmp_path / "x.tgz"), folder, means())
    assert path.read_bytes() == image()
    assert manifest == parse(MANIFEST, "")
    assert extract(path, folder, means())[0] == path


# Layouts


def test_a_layout_is_read_as_it_was_written(an_image: Image, tmp_path: Path) -> None:
    target = tmp_path / "layout"
    oci_layout.put(an_image, target, "1.2")
    stored = oci_layout.read(target, "1.2", "amd64")
    assert (stored.manifest, stored.config, stored.layers) == (
        an_image.manifest,
        an_image.config,
        an_image.layers,
    )
    assert oci_layout.read(target, "", "amd64").digest == an_image.digest


def test_a_layout_takes_several_images(an_image: Image, tmp_path: Path) -> None:
    target = tmp_path / "layout"
    oci_layout.put(an_image, target, "1")
    other = tarball(
        tmp_path / "other.tgz", {"image": image(), "stemcell.MF": MANIFEST.replace(b"1.2", b"9")}
    )
    second = made(other, tmp_path / "second")
    oci_layout.put(second, target, "2")
    oci_layout.put(
        oci_layout.copy(oci_layout.read(target, "2", ""), tmp_path / "copy"), target, "3"
    )
    assert oci_layout.read(target, "1", "").labels["bosh.stemcell.version"] == "1.2"
    assert oci_layout.read(target, "2", "").digest == oci_layout.read(target, "3", "").digest
    with pytest.raises(StemcellError, match="3 images; name one of: 1, 2, 3"):
        oci_layout.read(target, "", "")
    with pytest.raises(StemcellError, match="no image '4'"):
        oci_layout.read(target, "4", "")


def test_something_else_is_not_overwritten(an_image: Image, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "precious").write_text("x")
    with pytest.raises(StemcellError, match="no OCI image layout"):
        oci_layout.put(an_image, target, "1")
    assert [path.name for path in target.iterdir()] == ["precious"]


def test_an_archive_is_the_same_bytes_each_time(an_image: Image, tmp_path: Path) -> None:
    archives = [tmp_path / "1.tar", tmp_path / "2.tar"]
    for path in archives:
        oci_layout.write_archive(an_image, path, "x")
    assert archives[0].read_bytes() == archives[1].read_bytes()
    folder = tmp_path / "unpacked"
    oci_layout.open_archive(archives[0], folder)
    assert oci_layout.read(folder, "x", "").digest == an_image.digest
    docker = json.loads((an_image.folder / "manifest.json").read_bytes())
    assert docker[0]["RepoTags"] == ["bosh-test-go-agent:1.2"]


@pytest.mark.parametrize("what", ["layer", "manifest", "config"])
def test_a_damaged_layout_is_refused(an_image: Image, tmp_path: Path, what: str) -> None:
    target = tmp_path / "layout"
    oci_layout.put(an_image, target, "1")
    stored = oci_layout.read(target, "1", "")
    digests = {"layer": stored.layers[0].digest, "manifest": stored.digest}
    path = stored.blob(digests.get(what, oci.digest(stored.config)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StemcellError, match=r"damaged|lacks"):
        oci_layout.read(target, "1", "")


def test_an_index_of_several_platforms(an_image: Image, tmp_path: Path) -> None:
    target = tmp_path / "layout"
    oci_layout.put(an_image, target, "1")
    entry = json.loads((target / "index.json").read_bytes())["manifests"][0]
    entries = [entry, {**entry, "digest": "sha256:" + "0" * 64, "platform": {"os": "linux"}}]
    index = oci.canonical({"manifests": entries})
    (target / "blobs/sha256" / oci.digest(index)[7:]).write_bytes(index)
    outer = {"mediaType": oci.INDEX, "digest": oci.digest(index), "size": len(index)}
    (target / "index.json").write_bytes(oci.canonical({"manifests": [outer]}))
    assert oci_layout.read(target, "", "amd64").digest == an_image.digest
    with pytest.raises(StemcellError, match="no image for linux/arm64; it has: linux/amd64"):
        oci_layout.read(target, "", "arm64")


# Interruptions


def _interrupt(what: str) -> Callable[[str], None]:
    def stop(step: str) -> None:
        if what in step:
            raise KeyboardInterrupt

    return stop


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    stemcell = tarball(tmp_path / "stemcell.tgz")
    target = tmp_path / "out" / "layout"
    with pytest.raises(KeyboardInterrupt), oci_layout.scratch(target) as folder:
        convert(stemcell, folder, means(on_step=_interrupt("reading")))
    assert list(target.parent.iterdir()) == []


def test_a_stemcell_in_a_stemcell_is_no_image(tmp_path: Path) -> None:
    inner = tarball(tmp_path / "inner.tgz").read_bytes()
    members = {"image": inner, "stemcell.MF": MANIFEST}
    with pytest.raises(StemcellError, match="stemcell"):
        made(tarball(tmp_path / "x.tgz", members), tmp_path / "work")
    nested = {"image": zipped(b""), "stemcell.MF": MANIFEST}
    with pytest.raises(StemcellError):
        made(tarball(tmp_path / "y.tgz", nested), tmp_path / "nested")
