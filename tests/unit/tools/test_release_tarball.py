"""The BOSH release's tarballs: what the director and create-env read in them.

With BOSH_CLI in the environment, what BOSH's own CLI makes of the same folder is held to the same.
"""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from cpi.version import VERSION
from testing.repository import REPOSITORY
from tools import release_tarball
from tools.release_tarball import FIRST_TRY, RELEASE, ReleaseError

Builder = Callable[[Path, str, Path], None]

BUILDERS: dict[str, Builder] = {"ours": release_tarball.write}
if cli := os.environ.get("BOSH_CLI"):
    BUILDERS["bosh"] = partial(release_tarball.write_with_cli, cli)

# What bosh-cli 7.10.6 says of the release that `small` makes.
FINGERPRINTS = {
    "job": "441abb3b536351fe7bb83acd8032817ef1d6e9e753a0eb0d0bfad4b6b2ac0cca",
    "package": "a2e5ee6dbe77682242d762c04132bc330098d6bda0bf3b78d7ea986c81a3dc38",
    "license": "38ba987e80bc651a1f90810fef72eab132d97b5056c298c0c13cb32cebf12909",
}


def opened(content: bytes) -> dict[str, tuple[bytes, int]]:
    """Return content and mode of the files of a gzip'd archive."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        files = {}
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                files[member.name.removeprefix("./")] = (file.read(), member.mode & 0o777)
        return files


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def put(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def small(folder: Path) -> Path:
    """Return a release with one of each, an executable file, and a package that needs another."""
    put(folder / "config" / "final.yml", "name: small\n")
    put(folder / "config" / "blobs.yml", "--- {}\n")
    put(folder / "LICENSE", "free\n")
    job = "name: job\ntemplates: {a.erb: bin/a, b: config/b}\npackages: [package]\nproperties: {}\n"
    put(folder / "jobs" / "job" / "spec", job)
    put(folder / "jobs" / "job" / "monit", "")
    put(folder / "jobs" / "job" / "templates" / "a.erb", "<%= 1 %>\n", 0o755)
    put(folder / "jobs" / "job" / "templates" / "b", "b\n")
    put(folder / "packages" / "package" / "spec", "name: package\nfiles: ['p/*']\n")
    put(folder / "packages" / "package" / "packaging", "cp -r p/* $BOSH_INSTALL_TARGET\n")
    put(folder / "src" / "p" / "run", "#!/bin/sh\n", 0o755)
    put(folder / "src" / "p" / "data", "data\n")
    return folder


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("source", [RELEASE, FIRST_TRY], ids=lambda path: path.name)
def test_a_tarball_holds_what_its_manifest_says(
    source: Path, builder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # BOSH's CLI keeps a cache there
    staged = release_tarball.stage(source, tmp_path)
    tarball = tmp_path / "release.tgz"
    BUILDERS[builder](staged, "1.2.3+dev.4", tarball)
    assert tarball.stat().st_mode & 0o777 == 0o644  # others deploy with it
    files = {name: content for name, (content, _) in opened(tarball.read_bytes()).items()}
    manifest = yaml.safe_load(files.pop("release.MF"))
    assert manifest["name"] == yaml.safe_load((source / "config" / "final.yml").read_text())["name"]
    assert manifest["version"] == "1.2.3+dev.4"
    assert files.pop("LICENSE") == (REPOSITORY / "LICENSE").read_bytes()
    licence = files.pop("license.tgz")
    assert manifest["license"]["sha1"] == digest(licence)
    assert opened(licence) == {"LICENSE": ((REPOSITORY / "LICENSE").read_bytes(), 0o644)}
    for part in ("job", "package"):
        for entry in manifest.get(f"{part}s", []):
            content = files.pop(f"{part}s/{entry['name']}.tgz")
            assert entry["sha1"] == digest(content)
            assert entry["version"] == entry["fingerprint"]
            assert re.fullmatch("[0-9a-f]{64}", entry["fingerprint"])
            check = _is_job if part == "job" else _is_package
            check(staged / f"{part}s" / entry["name"], entry, opened(content))
    assert not files
    assert len(list((staged / "jobs").iterdir())) == len(manifest["jobs"])


def _is_job(folder: Path, entry: dict[str, Any], files: dict[str, tuple[bytes, int]]) -> None:
    spec = yaml.safe_load((folder / "spec").read_text())
    assert files.pop("job.MF")[0] == (folder / "spec").read_bytes()
    assert files.pop("monit")[0] == (folder / "monit").read_bytes()
    assert entry["packages"] == spec["packages"]
    schema = {path.name for path in folder.glob("properties_schema.json")}
    assert set(files) == {f"templates/{name}" for name in spec["templates"]} | schema
    for name, (content, _) in files.items():
        assert content == (folder / name).read_bytes()


def _is_package(folder: Path, entry: dict[str, Any], files: dict[str, tuple[bytes, int]]) -> None:
    assert entry["dependencies"] == []
    assert files.pop("packaging")[0] == (folder / "packaging").read_bytes()
    assert set(files) == {"containerd_cpi/cpi.pyz"}
    assert files["containerd_cpi/cpi.pyz"][1] == 0o755


@pytest.mark.parametrize("builder", BUILDERS)
def test_fingerprints_are_those_of_bosh(
    builder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tarball = tmp_path / "small.tgz"
    BUILDERS[builder](small(tmp_path / "small"), "1", tarball)
    manifest = yaml.safe_load(opened(tarball.read_bytes())["release.MF"][0])
    assert {
        "job": manifest["jobs"][0]["fingerprint"],
        "package": manifest["packages"][0]["fingerprint"],
        "license": manifest["license"]["fingerprint"],
    } == FINGERPRINTS


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    tarballs = []
    for name in ("one", "two"):
        tarballs.append(tmp_path / f"{name}.tgz")
        staged = release_tarball.stage(RELEASE, tmp_path / name)
        release_tarball.write(staged, "1", tarballs[-1])
    assert tarballs[0].read_bytes() == tarballs[1].read_bytes()


def test_what_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    folder, tarball = small(tmp_path / "small"), tmp_path / "small.tgz"
    put(folder / "packages" / "package" / "spec", "name: package\nfiles: ['q/*']\n")
    with pytest.raises(ReleaseError, match=r"nothing in src/ is called q/\*"):
        release_tarball.write(folder, "1", tarball)
    put(folder / "packages" / "package" / "spec", "name: other\n")
    with pytest.raises(ReleaseError, match="must be of the name package"):
        release_tarball.write(folder, "1", tarball)
    put(folder / "packages" / "package" / "spec", "name: package\n")
    put(folder / "jobs" / "job" / "spec", "name: job\npackages: [package, none]\n")
    with pytest.raises(ReleaseError, match=r"packages that are not there: \['none'\]"):
        release_tarball.write(folder, "1", tarball)
    assert not tarball.exists()


def test_make_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last tarballs are found without their version, too."""
    release_tarball.main(["--output", str(tmp_path), "--version", "1.2.3", "--cli", ""])
    names = ["bosh-containerd-cpi", "first-try"]
    assert capsys.readouterr().out.split() == [str(tmp_path / f"{n}-1.2.3.tgz") for n in names]
    for name in names:
        latest = tmp_path / f"{name}.tgz"
        assert latest.samefile(tmp_path / f"{name}-1.2.3.tgz")
        assert yaml.safe_load(opened(latest.read_bytes())["release.MF"][0])["name"] == name


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(rf"{re.escape(VERSION)}\+dev\.[0-9]+", release_tarball.default_version())
    with pytest.raises(SystemExit) as caught:
        release_tarball.main(["--version", "../1"])
    assert "is no version" in str(caught.value)
    assert capsys.readouterr().out == ""


def test_the_template_uses_the_properties_that_the_spec_has() -> None:
    job = RELEASE / "jobs" / "containerd_cpi"
    spec = yaml.safe_load((job / "spec").read_text())
    used = set()
    for name in spec["templates"]:
        used |= set(re.findall(r"p\('([^']+)'", (job / "templates" / name).read_text()))
    assert used == set(spec["properties"])
    for name, about in spec["properties"].items():
        assert about["description"], name
