"""Make the BOSH release: `python -m tools.release_tarball`, which is `make release`.

BOSH's CLI does it where there is one (on the PATH, or named by BOSH_CLI). Without it we write the
same tarball ourselves: same fingerprints, same type of digests, same structure, and the same bytes
each time. The format is that of bosh-cli 7.10: release/*, release/resource/fingerprint.go.
"""

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cpi.version import VERSION
from testing.repository import REPOSITORY
from tools import client_zipapp

RELEASE = REPOSITORY / "release"
FIRST_TRY = REPOSITORY / "deploy" / "first-try"  # a release for the first VM, without a director

# What the director accepts (validate_manifest_release_identifiers! in its update_release.rb), and a
# file name of ours.
_VERSION = re.compile(r"[0-9A-Za-z_.-]+(\+[0-9A-Za-z_.-]+)?")


class ReleaseError(Exception):
    """A release cannot be made; the message names the file and the problem."""


@dataclass(frozen=True)
class Source:
    """A file of an archive: where it comes from, its name there, what its fingerprint takes."""

    path: Path
    name: str
    with_mode: bool = True

    @property
    def mode(self) -> int:
        """The file's permissions, as git would keep them."""
        return 0o755 if self.path.stat().st_mode & 0o111 else 0o644


@dataclass(frozen=True)
class Archive:
    """A job, a package or the licence, packed."""

    fingerprint: str
    content: bytes

    def reference(self, name: str | None, **more: object) -> dict[str, object]:
        """Return the archive's entry in release.MF."""
        named = {} if name is None else {"name": name}
        digest = f"sha256:{hashlib.sha256(self.content).hexdigest()}"
        version = {"version": self.fingerprint, "fingerprint": self.fingerprint, "sha1": digest}
        return {**named, **version, **more}


def default_version() -> str:
    """Return a development version that grows with the commits, such as 0.1.0+dev.123."""
    return f"{VERSION}+dev.{_git('rev-list', '--count', 'HEAD') or '0'}"


def stage(source: Path, folder: Path) -> Path:
    """Copy a release's folder, and add what is not in git: client and licence.

    Returns the copy, on which BOSH's CLI or `write` can work. Raises OSError.
    """
    staged = folder / source.name
    shutil.copytree(source, staged)
    shutil.copy(REPOSITORY / "LICENSE", staged)
    (staged / "src").mkdir(exist_ok=True)
    if source == RELEASE:
        client = staged / "src" / "containerd_cpi" / "cpi.pyz"
        client.parent.mkdir()
        client_zipapp.build(client)
    return staged


def write(staged: Path, version: str, tarball: Path) -> None:
    """Write a staged release's tarball. Raises ReleaseError or OSError."""
    packages = {path.parent.name: _package(path.parent) for path in _specs(staged, "packages")}
    jobs = {path.parent.name: _job(path.parent, packages) for path in _specs(staged, "jobs")}
    licence = _packed([Source(staged / "LICENSE", "LICENSE", with_mode=False)])
    manifest = {
        "name": _yaml(staged / "config" / "final.yml")["name"],
        "version": version,
        "commit_hash": _git("rev-parse", "--short", "HEAD") or "non-git",
        "uncommitted_changes": bool(_git("status", "--porcelain=1")),
        "jobs": [
            archive.reference(name, packages=spec.get("packages", []))
            for name, (spec, archive) in jobs.items()
        ],
        "packages": [
            archive.reference(name, dependencies=spec.get("dependencies", []))
            for name, (spec, archive) in packages.items()
        ],
        "license": licence.reference(None),
        "no_compression": False,
    }
    members = {
        "release.MF": yaml.safe_dump(manifest, sort_keys=False).encode(),
        **{f"jobs/{name}.tgz": archive.content for name, (_, archive) in jobs.items()},
        **{f"packages/{name}.tgz": archive.content for name, (_, archive) in packages.items()},
        "license.tgz": licence.content,
        "LICENSE": (staged / "LICENSE").read_bytes(),
    }
    tarball.write_bytes(_tar((name, content, 0o644) for name, content in members.items()))


def write_with_cli(cli: str, staged: Path, version: str, tarball: Path) -> None:
    """Write it with BOSH's CLI. Raises CalledProcessError."""
    # --force: the copy lies outside of git, or is new there. Its messages are of no use here.
    command = [cli, "create-release", "--force", "--dir", str(staged), "--version", version]
    subprocess.run(
        [*command, "--tarball", str(tarball)], check=True, capture_output=True, text=True
    )
    tarball.chmod(0o644)  # the CLI makes it its owner's alone, and others deploy with it


def _specs(staged: Path, folder: str) -> list[Path]:
    return sorted((staged / folder).glob("*/spec"))


def _job(folder: Path, packages: Iterable[str]) -> tuple[dict[str, Any], Archive]:
    """Pack a job: its spec as job.MF, monit, its properties' schema, and the spec's templates."""
    spec = _named(folder)
    missing = sorted(set(spec.get("packages", [])) - set(packages))
    if missing:
        raise ReleaseError(f"{folder / 'spec'} names packages that are not there: {missing}")
    templates = [f"templates/{name}" for name in spec.get("templates", {})]
    schema = [name for name in ("properties_schema.json",) if (folder / name).exists()]
    sources = [Source(folder / name, name) for name in ("monit", *schema, *templates)]
    return spec, _packed([Source(folder / "spec", "job.MF"), *sources])


def _package(folder: Path) -> tuple[dict[str, Any], Archive]:
    """Pack a package: its packaging script, and the files of src/ that the spec's globs find."""
    spec = _named(folder)
    top = folder.parent.parent / "src"
    sources = [Source(folder / "packaging", "packaging", with_mode=False)]
    for pattern in spec.get("files", []):
        paths = sorted(path for path in top.glob(pattern) if path.is_file())
        if not paths:
            raise ReleaseError(f"{folder / 'spec'}: nothing in src/ is called {pattern}")
        sources += [Source(path, str(path.relative_to(top))) for path in paths]
    return spec, _packed(sources, sorted(spec.get("dependencies", [])))


def _named(folder: Path) -> dict[str, Any]:
    """Read a job's or package's spec, which repeats the folder's name."""
    spec = _yaml(folder / "spec")
    if spec.get("name") != folder.name:
        raise ReleaseError(f"{folder / 'spec'} must be of the name {folder.name}")
    return spec


def _yaml(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    if not isinstance(document, dict):
        raise ReleaseError(f"{path} holds no YAML mapping")
    return document


def _packed(sources: list[Source], dependencies: Sequence[str] = ()) -> Archive:
    """Return the archive of these files, with BOSH's fingerprint of them (its version 2)."""
    ordered = sorted(sources, key=lambda source: source.name)
    chunks = ["v2"]
    for source in ordered:
        digest = hashlib.sha256(source.path.read_bytes()).hexdigest()
        mode = f"100{source.mode:o}" if source.with_mode else ""
        chunks.append(f"{source.name}sha256:{digest}{mode}")
    fingerprint = hashlib.sha256("".join([*chunks, ",".join(dependencies)]).encode()).hexdigest()
    files = ((source.name, source.path.read_bytes(), source.mode) for source in ordered)
    return Archive(fingerprint, _tar(files, "./"))


def _tar(files: Iterable[tuple[str, bytes, int]], prefix: str = "") -> bytes:
    """Return a gzip'd tar archive of files (name, content, mode), always of the same bytes."""
    written = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=written, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        folders: set[Path] = set()
        for name, content, mode in files:
            for folder in reversed(Path(name).parents[:-1]):
                if folder not in folders:
                    folders.add(folder)
                    member = tarfile.TarInfo(f"{prefix}{folder}")
                    member.type, member.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(member)
            member = tarfile.TarInfo(f"{prefix}{name}")
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


def _build_folder() -> Path:
    folder = REPOSITORY / "build"
    folder.mkdir(exist_ok=True)
    return folder


def _git(*arguments: str) -> str:
    """Return git's output for this checkout; empty without git or outside of a checkout."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def main(argv: Sequence[str] | None = None) -> None:
    """Write both releases and print their paths."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build", help="folder (build)")
    parser.add_argument("--version", default=default_version(), help="version (%(default)s)")
    cli = os.environ.get("BOSH_CLI") or shutil.which("bosh")
    parser.add_argument("--cli", default=cli, help="BOSH's CLI (%(default)s)")
    options = parser.parse_args(argv)
    if not _VERSION.fullmatch(options.version):
        sys.exit(f"{options.version} is no version of a release; use one such as 1.2.3 or 1+dev.4")
    options.output.mkdir(parents=True, exist_ok=True)
    for source, name in ((RELEASE, "bosh-containerd-cpi"), (FIRST_TRY, "first-try")):
        tarball = options.output.resolve() / f"{name}-{options.version}.tgz"
        # In the checkout, where BOSH's CLI asks git for the commit.
        with tempfile.TemporaryDirectory(dir=_build_folder()) as folder:
            staged = stage(source, Path(folder))
            if options.cli:
                write_with_cli(options.cli, staged, options.version, tarball)
            else:
                write(staged, options.version, tarball)
        latest = options.output / f"{name}.tgz"
        latest.unlink(missing_ok=True)
        latest.symlink_to(tarball.name)
        print(tarball)


if __name__ == "__main__":
    main()
