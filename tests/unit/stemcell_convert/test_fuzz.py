"""Documents from anywhere: each is read, or refused by a StemcellError that names it."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from stemcell_convert import oci, oci_image as images, oci_layout, reference, stemcell_manifest
from stemcell_convert.convert import file_systems
from stemcell_convert.facts import read_facts
from stemcell_convert.inroot import Root
from stemcell_convert.oci_image import ImageManifest
from stemcell_convert.stemcell_errors import StemcellError
from tests.support.stemcells.fuzzing import stable, tried

NAMED = "/some/stemcell.tgz: stemcell.MF"

# What YAML's own constructors stumble over, each in its own way.
WORDS = (
    *("name: x", "- a", "? [a]\n: b", "{a: ", "[", "'", '"\\uD800"', "\t", "&a", "*a", "<<: *a"),
    *("!!python/object:os.system", "!!bool maybe", '!!int ""', '!!float ""', "!!timestamp x"),
    *("!!binary é", "!!omap x", "!!set [1]", "2024-99-99", "0001-01-01 00:00:00 +14:00"),
    *("0x" + "f" * 5000, "9" * 5000, "1" + ":59" * 200 + ".5", "1" + ":59" * 4000, ".inf", "~"),
    *("\n", ": ", "stemcell_formats: ", "cloud_properties: ", "  ", "---\n", "|\n ", "\0", "\xff"),
    *("version: ", "version: .nan\n", "name: [\n", "%YAML 9.9\n", "!<tag:x> ", "\ufeff"),
)


def _manifest(document: bytes) -> stemcell_manifest.Manifest | None:
    return tried(lambda: stemcell_manifest.parse(document, NAMED), NAMED)


@stable(40)
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=12).map("".join))
@example("version: 0x" + "f" * 5000)
@example("name: 1" + ":59" * 4000)
@example("- " * 3000)
@example("[" * 9000)
def test_a_manifest_of_any_text(text: str) -> None:
    parsed = _manifest(text.encode("utf-8", "surrogatepass"))
    for value in (parsed.name, parsed.version, parsed.image) if parsed else ():
        assert value.isprintable()
        assert len(value) < 1000


@stable(100)
@given(st.binary(max_size=60))
def test_a_manifest_of_any_bytes(data: bytes) -> None:
    _manifest(data)
    _manifest(b"name: x\nversion: " + data)


def test_a_small_manifest_does_not_become_a_large_one() -> None:
    bomb = "a0: &a0 {k: v}\n" + "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 30)
    )
    assert _manifest(bomb.encode()) is None
    laughs = "a0: &a0 x\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
    )
    parsed = _manifest(f"{laughs}name: *a0\nstemcell_formats: *a29\n".encode())
    assert parsed == stemcell_manifest.Manifest(name="x", formats=("",) * 10)


def test_a_manifest_that_would_take_hours_is_not_read() -> None:
    assert _manifest(b"version: 1" + b":59" * 340_000) is None


def test_what_ruby_writes_twice_is_read_twice() -> None:
    parsed = _manifest(b"name: &1 stemcell\nversion: '1'\ncloud_properties:\n  name: *1\n")
    assert parsed is not None
    assert parsed.cloud_properties == {"name": "stemcell"}


SIZE = 1 << 20
_edges = st.sampled_from([0, 1, 2, 63, 1 << 31, (1 << 63) // 512, (1 << 64) - 1, SIZE // 512])
_number = _edges | st.integers(0, (1 << 64) - 1)


@stable(100)
@given(
    st.lists(st.tuples(st.integers(0, 255), _number, _number), max_size=4),
    st.tuples(_number, _edges | st.just(128), st.sampled_from([0, 127, 128, 256, 4096, 1 << 31])),
    st.lists(st.tuples(_number, _number), max_size=4),
    st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=9),
    st.integers(0, SIZE),
)
@example([(0xEE, 1, 9)], ((1 << 64) - 1, 128, 128), [], [], SIZE)
@example([(0xEE, 1, 9)], (1 << 60, 128, 128), [], [], SIZE)
def test_a_partition_table_of_any_numbers(
    tmp_path: Path,
    mbr: list[tuple[int, int, int]],
    gpt: tuple[int, int, int],
    entries: list[tuple[int, int]],
    flips: list[tuple[int, int]],
    size: int,
) -> None:
    disk = bytearray(max(size, 8 * 512))
    for number, (mbr_type, first, count) in enumerate(mbr):
        struct.pack_into(
            "<B3xII", disk, 446 + 16 * number + 4, mbr_type, first & 0xFFFFFFFF, count & 0xFFFFFFFF
        )
    disk[510:520] = b"\x55\xaaEFI PART"
    start, number, each = gpt
    struct.pack_into("<QII", disk, 512 + 72, start, number & 0xFFFFFFFF, each)
    for index, (first, last) in enumerate(entries):
        struct.pack_into("<16sQQ", disk, 1024 + index * 128, b"t" * 16, 0, 0)
        struct.pack_into("<QQ", disk, 1024 + index * 128 + 32, first, last)
    for offset, value in flips:
        disk[offset] = value
    raw = tmp_path / "raw"
    raw.write_bytes(disk[:size])
    for system in tried(lambda: file_systems(raw), "the disk") or ():
        assert 0 <= system.offset < system.offset + system.size <= size


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_json = st.recursive(
    _scalars, lambda node: st.lists(node, max_size=3) | st.dictionaries(st.text(max_size=5), node)
)
DIGEST = "sha256:" + "a" * 64
_digest = st.sampled_from([DIGEST, "sha256:../../../etc/passwd", DIGEST.upper(), "sha256:", "../x"])
_hostile = _json | _digest | st.sampled_from([oci.LAYER, oci.LAYER_GZIP, oci.INDEX, 1 << 70, -1])
_descriptor = _json | st.dictionaries(
    st.sampled_from(["digest", "size", "mediaType", "platform", "annotations"]), _hostile
)
_platform = st.fixed_dictionaries({"os": _hostile, "architecture": st.just("amd64") | _hostile})
_entry = st.fixed_dictionaries({"digest": _digest | _json, "platform": _platform | _json})
_document = st.one_of(
    st.binary(max_size=20),
    st.just(b"[" * 200_000),
    st.just(b'{"layers": 1' + b"0" * 5000 + b"}"),
    st.dictionaries(
        st.sampled_from(["config", "layers", "manifests", "rootfs", "mediaType", "schemaVersion"]),
        _hostile | _descriptor | st.lists(_descriptor | _entry, max_size=3),
    ).map(lambda document: json.dumps(document).encode()),
)


@stable(60)
@given(_document, _document)
def test_the_documents_of_an_image(first: bytes, second: bytes) -> None:
    named = "/some/folder"
    parsed = tried(lambda: images.parse_manifest(first, named), named)
    parsed = parsed or ImageManifest(DIGEST, 1, ((oci.LAYER, DIGEST, 1),))
    tried(lambda: images.layers_of(parsed, second, named), named)
    index = tried(lambda: images.parse_json(second, named), named) or {}
    digest = tried(lambda: images.for_platform(index, "amd64", named), named)
    assert digest in (None, DIGEST)


@pytest.mark.parametrize(
    "document",
    [
        {"config": {"digest": DIGEST, "size": 1}, "layers": ["x", 5, None]},
        {"config": {"digest": DIGEST, "size": 1}, "layers": {"digest": DIGEST}},
        {"config": {"digest": DIGEST, "size": 1}, "layers": [{"mediaType": ["x"]}]},
        {"config": [], "layers": []},
    ],
)
def test_layers_that_are_none(document: object) -> None:
    with pytest.raises(StemcellError, match="/some/folder"):
        images.parse_manifest(json.dumps(document).encode(), "/some/folder")


@pytest.mark.parametrize("listed", [5, "x", {"a": 1}, None, [[]], [{"platform": 1}]])
def test_an_index_that_is_none(listed: object) -> None:
    with pytest.raises(StemcellError, match="/some/folder"):
        images.for_platform({"manifests": listed}, "amd64", "/some/folder")


@stable(30)
@given(st.data())
def test_a_layout_of_any_documents(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("layout")
    blobs = oci_layout.begin(folder)

    def stored(document: bytes) -> str:
        digest = oci.digest(document)
        (blobs / digest.partition(":")[2]).write_bytes(document)
        return digest

    config = data.draw(
        _document | st.just(b'{"rootfs": {"diff_ids": ["' + DIGEST.encode() + b'"]}}')
    )
    layer = data.draw(st.sampled_from([stored(b"layer"), DIGEST, "sha256:../../etc/passwd"]))
    descriptors = {
        "config": {"digest": stored(config), "size": data.draw(st.just(len(config)) | _hostile)},
        "layers": [
            {"mediaType": oci.LAYER, "digest": layer, "size": data.draw(_hostile | st.just(5))}
        ],
    }
    made = json.dumps(descriptors).encode()
    digest = data.draw(st.just(stored(made)) | st.builds(stored, _document) | _digest)
    entry = {"digest": digest, "mediaType": data.draw(st.just(oci.INDEX) | _hostile)}
    index = {"manifests": data.draw(st.just([entry]) | st.lists(_descriptor | st.just(entry)))}
    (folder / "index.json").write_bytes(data.draw(st.just(json.dumps(index).encode()) | _document))
    image = tried(lambda: oci_layout.read(folder, "", "amd64"), str(folder))
    if image:
        oci.stemcell_of(image.labels)
        assert image.architecture is not None
        assert image.media_type


_names = st.text("aZ0._-/:@[]", max_size=40) | st.from_regex(
    r"([a-z]+[.:][1-9]{1,3}/)?[a-z/_-]+(:[A-Za-z0-9.]+)?", fullmatch=True
)


@stable(150)
@given(_names)
@example("A/b")
@example("x" * 512)
@example("index.docker.io/x@" + DIGEST)
def test_a_reference_is_read_as_it_is_written(text: str) -> None:
    parsed = tried(lambda: reference.parse(text), ascii(text[:9])[:-1])
    assert parsed is None or reference.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a b",
        "A",
        "A/b",
        "Team/stemcell",
        "a@sha256:short",
        "a:",
        "../x",
        "-a",
        "a\n",
        "x" * 600,
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(StemcellError, match="is no image reference"):
        reference.parse(text)


@pytest.mark.parametrize("version", ["9" * 5000, "٣", "x", ""])
def test_a_label_that_is_no_version(version: str) -> None:
    labels = {oci.LABEL_API: version, oci.LABEL_NAME: "n", oci.LABEL_VERSION: "1"}
    said = oci.stemcell_of({**labels, oci.LABEL_OS: "o"})
    assert stemcell_manifest.of_light(said, "a/b", DIGEST)["api_version"] == 3


@stable(30)
@given(
    st.binary(max_size=40).map(lambda data: b"\x7fELF" + data) | st.binary(max_size=9),
    _document,
)
@example(b"\x7fELF", b"{}")
def test_the_files_of_a_root_file_system(
    tmp_path_factory: pytest.TempPathFactory, program: bytes, agent: bytes
) -> None:
    root = tmp_path_factory.mktemp("root")
    for name, content in {
        "bin/sh": program,
        "usr/sbin/runsvdir-start": b"",
        "var/vcap/bosh/agent.json": agent,
        "etc/os-release": agent,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    with Root(root) as opened:
        facts = tried(lambda: read_facts(opened, "the stemcell"), "the stemcell")
    assert facts is None or facts.architecture
