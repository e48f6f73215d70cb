"""Light stemcells, and the names of images in registries."""

import tarfile
from pathlib import Path

import pytest
import yaml

from stemcell_convert import light_tarball
from stemcell_convert.reference import Reference, parse as reference
from stemcell_convert.stemcell_errors import StemcellError
from stemcell_convert.stemcell_manifest import Manifest, of_properties, parse

STEMCELL = Manifest("a-go_agent", "1.10", "ubuntu-noble", "3", ("warden-tar",))
DIGEST = "sha256:" + "5" * 64


def test_a_light_stemcell_is_what_the_director_takes(tmp_path: Path) -> None:
    path = tmp_path / "light.tgz"
    light_tarball.write(path, STEMCELL, "ghcr.io/team/stemcell:1", DIGEST)
    with tarfile.open(path, "r:gz") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert content["image"] == b""
    document = yaml.safe_load(content["stemcell.MF"])
    assert document["stemcell_formats"] == ["docker-light", "warden-light"]
    assert document["version"] == "1.10"
    assert document["api_version"] == 3
    assert document["sha1"] == "da39a3ee5e6b4b0d3255bfef95601890afd80709"
    assert document["cloud_properties"] == {
        "name": "a-go_agent",
        "version": "1.10",
        "image_reference": "ghcr.io/team/stemcell:1",
        "digest": DIGEST,
    }
    assert parse(content["stemcell.MF"], "").image == f"ghcr.io/team/stemcell:1@{DIGEST}"
    first = path.read_bytes()
    light_tarball.write(path, STEMCELL, "ghcr.io/team/stemcell:1", DIGEST)
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["light.tgz"]


def test_an_image_of_no_stemcell_gives_no_light_one(tmp_path: Path) -> None:
    with pytest.raises(StemcellError, match="does not say which stemcell"):
        light_tarball.write(tmp_path / "light.tgz", Manifest("a", "1"), "h.io/a", DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StemcellError, match="missing"):
        light_tarball.write(tmp_path / "missing" / "light.tgz", STEMCELL, "h.io/a", DIGEST)


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("ghcr.io/team/stemcell:1.2", "ghcr.io", "team/stemcell", "1.2", ""),
        (f"localhost/a@{DIGEST}", "localhost", "a", "", DIGEST),
        (f"127.0.0.1:5000/a/b/c:x@{DIGEST}", "127.0.0.1:5000", "a/b/c", "x", DIGEST),
        ("[::1]:5000/a", "[::1]:5000", "a", "", ""),
        ("debian", "docker.io", "library/debian", "", ""),
        ("team/a_b--c.d:1", "docker.io", "team/a_b--c.d", "1", ""),
        ("index.docker.io/debian", "docker.io", "library/debian", "", ""),
    ],
)
def test_references(text: str, host: str, repository: str, tag: str, digest: str) -> None:
    parsed = reference(text)
    assert parsed == Reference(host, repository, tag, digest)
    assert reference(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "", ":1", "a b", "h.io/UPPER", "h.io/../x", "h.io//a", "h.io/a:", "h.io/a@sha256:12",
        "http://h.io/a", "h.io/a?x=1", "h.io/a#x", "user@h.io/a", "h.io/a:1/b", "h.io/a\n",
        "a" * 600, f"h.io/a@md5:{'1' * 32}", "h.io:port/a", "-h.io/a",
    ],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(StemcellError, match="is no image reference"):
        reference(text)


def test_what_a_manifest_may_say() -> None:
    manifest = parse(
        b"name: n\nversion: 1.10\napi_version: 3\nstemcell_formats: [a, 1, [x]]\n", "MF"
    )
    assert manifest == Manifest("n", "1.1", "", "3", ("a", "1", ""))
    assert parse(b"name: [x]\nversion: {}\nstemcell_formats: x\n", "MF") == Manifest()
    assert of_properties({"name": "n", "version": True}).version == ""
    assert of_properties({"name": "n" * 300}).name == ""
    assert of_properties({"name": "a\nb"}).name == ""
