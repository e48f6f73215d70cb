"""`bosh-cpi stemcell …`: stemcells as OCI images."""

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpi.commands import output
from cpi.commands.declare import JSON, Command, Group, argument, switch
from cpi.commands.image_places import ARCHIVE, FILE, RUNTIME, Place, destination, place
from cpi.config.config import Config
from cpi.errors import CloudError
from cpi.log import Log
from runtimes import catalog, registry_access

if TYPE_CHECKING:
    from cpi.model import JsonObject
    from stemcell_convert.convert import Contents, Means
    from stemcell_convert.oci_image import Image
    from stemcell_convert.reference import Reference
    from stemcell_convert.registry import Registry

_EXAMPLES = f"""\
STEMCELL is a stemcell's tarball or the `image` in it, whatever its format, or an image made before:
oci:FOLDER[:NAME] or oci-archive:FILE. DESTINATION is one of those two, or {catalog.DEFAULT}.

examples:
  bosh-cpi stemcell inspect stemcell.tgz --explain
  bosh-cpi stemcell convert stemcell.tgz oci-archive:stemcell.tar && docker load -i stemcell.tar
  bosh-cpi stemcell push stemcell.tgz ghcr.io/team/stemcell:1.2 --light-stemcell light.tgz
  bosh upload-stemcell light.tgz
  bosh-cpi stemcell pull ghcr.io/team/stemcell@sha256:… oci:folder:1.2

Credentials for registries are those of `docker login`. Disks need root, to be looked into.
"""
_TEMPORARY = "/var/tmp"  # noqa: S108 (mkdtemp makes it safe; /tmp may be memory)


class _Work:
    """One command: its options, configuration and progress report."""

    def __init__(self, options: argparse.Namespace, config: Config) -> None:
        self.options = options
        self.config = _with_options(config, options)
        self.report = output.Terminal()

    def take(self, text: str, folder: Path) -> "tuple[Image, Contents | None]":
        """Return the image of a stemcell, converted below `folder` unless it is one already."""
        from stemcell_convert import oci, oci_layout

        source, here = place(text), oci.host_architecture()
        if source.transport == FILE:
            from stemcell_convert.convert import convert

            return convert(source.path, folder, self.means())
        where = source.path
        if source.transport == ARCHIVE:
            self.report.say(f"unpacking {source.path}")
            where = folder / "layout"
            oci_layout.open_archive(source.path, where)
        return oci_layout.read(where, source.name, here), None

    def means(self) -> "Means":
        """Return what conversions need."""
        from cpi.disks.foreign_filesystem import mounted
        from stemcell_convert.convert import Means

        return Means(mounted, self.config.integer("stemcell_limit") << 20, self.report)

    def registry(self, reference: "Reference") -> "Registry":
        """Return the registry of a reference, accessed as the configuration and options say."""
        from stemcell_convert.registry import Registry

        return Registry(reference, registry_access.access(self.config), self.report)

    def put(self, image: "Image", target: Place) -> dict[str, Any]:
        """Write an image to a destination; return the result as a document."""
        from stemcell_convert import oci_layout

        name = target.name or oci_layout.DEFAULT_NAME
        if target.transport == ARCHIVE:
            self.report.say(f"writing {target.path}")
            oci_layout.write_archive(image, target.path, name)
        else:
            oci_layout.put(image, target.path, name)
        return {"destination": str(target), **_image_document(image)}

    def give(self, image: Path, properties: "JsonObject", target: Place) -> dict[str, Any]:
        """Import a stemcell into a runtime, as BOSH would; return its CID as a document."""
        with catalog.Runtimes(self.config, Log()) as runtimes:
            return {"cid": runtimes.get(target.name).create_stemcell(image, properties, {})}

    def result(self, document: dict[str, Any], line: str) -> int:
        """Print the result: one line, or a JSON document."""
        if self.options.json:
            output.show_json(document)
        else:
            print(line)
        return 0


def _with_options(config: Config, options: argparse.Namespace) -> Config:
    """Return the configuration with the options for registries."""
    from stemcell_convert.reference import parse

    if getattr(options, "ca_file", None):
        config = config.replaced("registry.ca_file", os.path.abspath(options.ca_file))
    if getattr(options, "plain_http", False):
        text = getattr(options, "reference", None) or options.stemcell
        config = config.replaced("registry.plain_http", (parse(text).host,))
    return config


def _command(run: Callable[[_Work], int]) -> Callable[[argparse.Namespace, Config], int]:
    """Return a command that Ctrl-C ends cleanly and whose errors are CloudErrors."""

    def command(options: argparse.Namespace, config: Config) -> int:
        from stemcell_convert.stemcell_errors import StemcellError

        try:
            work = _Work(options, config)
            with work.report.interruptible():
                return run(work)
        except StemcellError as error:
            raise CloudError(str(error)) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise CloudError(f"{where}{error.strerror or error}") from None

    return command


def _image_document(image: "Image") -> dict[str, Any]:
    """Describe an image for scripts."""
    return {
        "digest": image.digest,
        "architecture": image.architecture,
        "size": image.size,
        "layers": [{"digest": layer.digest, "size": layer.size} for layer in image.layers],
        "labels": dict(image.labels),
    }


def _scratch() -> "tempfile.TemporaryDirectory[str]":
    folder = os.environ.get("TMPDIR", _TEMPORARY)
    return tempfile.TemporaryDirectory(prefix="bosh-cpi-", dir=folder)


def _convert(work: _Work) -> int:
    from stemcell_convert import oci_layout

    target = destination(work.options.destination)
    if target.transport == RUNTIME:
        return _import(work, target)
    with oci_layout.scratch(target.path) as folder:
        image, contents = work.take(work.options.stemcell, folder)
        document = work.put(_owned(image, folder), target)
        added = _added(contents) if work.options.explain else []
        if added:
            document["added"] = added
    if not added or work.options.json:
        return work.result(document, document["digest"])
    print(document["digest"])
    _show_added(added)
    return 0


def _owned(image: "Image", folder: Path) -> "Image":
    """Return the image, copied below `folder` if it is elsewhere, so that sources stay as is."""
    from stemcell_convert import oci_layout

    return image if image.folder.parent == folder else oci_layout.copy(image, folder / "copy")


def _import(work: _Work, target: Place) -> int:
    from stemcell_convert.convert import extract

    source = place(work.options.stemcell)
    if source.transport != FILE:
        raise CloudError(
            f"{target.name} takes stemcells, not {source.transport}:…; "
            "push it, and pull it from there"
        )
    with _scratch() as folder:
        image, manifest = extract(source.path, Path(folder), work.means())
        document = work.give(image, manifest.cloud_properties, target)
    return work.result(document, document["cid"])


def _push(work: _Work) -> int:
    from stemcell_convert import light_tarball, oci, oci_layout
    from stemcell_convert.reference import parse

    reference = parse(work.options.reference)
    if reference.digest:
        raise CloudError(f"{reference} has a digest; what is pushed gets a tag, its digest it has")
    reference = replace(reference, tag=reference.tag or oci_layout.DEFAULT_NAME)
    registry = work.registry(reference)  # before any work: it may refuse
    with _scratch() as folder:
        image, _ = work.take(work.options.stemcell, Path(folder))
        registry.push(image, reference.tag)
    if work.options.light_stemcell:
        stemcell = oci.stemcell_of(image.labels)
        light_tarball.write(work.options.light_stemcell, stemcell, str(reference), image.digest)
    return work.result(
        {"reference": str(reference), **_image_document(image)}, f"{reference}@{image.digest}"
    )


def _pull(work: _Work) -> int:
    from stemcell_convert import oci, oci_layout
    from stemcell_convert.reference import parse

    reference, target = parse(work.options.reference), destination(work.options.destination)
    if target.transport == RUNTIME:
        with _scratch() as name:
            empty = Path(name) / "image"
            empty.touch()
            document = work.give(empty, {"image_reference": str(reference)}, target)
        return work.result(document, document["cid"])
    with oci_layout.scratch(target.path) as folder:
        registry = work.registry(reference)
        image = registry.pull(reference, folder / "layout", oci.host_architecture())
        document = work.put(image, target)
    return work.result(document, document["digest"])


def _inspect(work: _Work) -> int:
    text = work.options.stemcell
    with _scratch() as name:
        folder = Path(name)
        if place(text).transport == FILE and not Path(text).exists():
            image, contents = _look(work, folder), None
        else:
            image, contents = work.take(text, folder)
        document = {**_facts(image, contents), **_image_document(image)}
        if work.options.explain:
            document["added"] = _added(contents)
    if work.options.json:
        output.show_json(document)
        return 0
    added = document.pop("added", [])
    del document["labels"]
    output.show_facts(document)
    if work.options.explain:
        _show_added(added)
    return 0


def _look(work: _Work, folder: Path) -> "Image":
    from stemcell_convert import light_tarball, oci
    from stemcell_convert.reference import parse
    from stemcell_convert.stemcell_errors import StemcellError

    try:
        reference = parse(work.options.stemcell)
    except StemcellError:
        raise CloudError(f"{work.options.stemcell}: there is no such file") from None
    image = work.registry(reference).look(reference, folder / "layout", oci.host_architecture())
    if work.options.light_stemcell:
        stemcell = oci.stemcell_of(image.labels)
        named = replace(reference, digest="")
        light_tarball.write(work.options.light_stemcell, stemcell, str(named), image.digest)
    return image


def _facts(image: "Image", contents: "Contents | None") -> dict[str, Any]:
    """Describe a stemcell."""
    from stemcell_convert import oci

    stemcell = oci.stemcell_of(image.labels)
    facts: dict[str, Any] = {
        "name": stemcell.name,
        "version": stemcell.version,
        "operating_system": stemcell.operating_system,
        "api_version": stemcell.api_version,
        "formats": list(stemcell.formats),
        "init": image.labels.get(oci.LABEL_INIT, ""),
        "source": image.labels.get(oci.LABEL_SOURCE, ""),
    }
    if contents:
        facts["image_type"] = contents.image_format
        facts["target"] = "containers" if contents.facts.for_containers else "machines"
        facts["os_release"] = contents.facts.os_release.get("PRETTY_NAME", "")
    return facts


def _added(contents: "Contents | None") -> list[dict[str, str]]:
    from stemcell_convert.adapt import adaptations

    if contents is None:
        raise CloudError("--explain is for stemcells; an image has its second layer already")
    return [{"path": file.path, "reason": file.reason} for file in adaptations(contents.facts)]


def _show_added(added: list[dict[str, str]]) -> None:
    print()
    rows = [[entry["path"], entry["reason"]] for entry in added]
    output.show_table(["IN THE SECOND LAYER", "REASON"], rows)


_STEMCELL = argument("stemcell", metavar="STEMCELL", help="tarball, image, oci:… or oci-archive:…")
_REFERENCE = argument(
    "reference", metavar="REFERENCE", help="registry/repository:tag, or …@sha256:…"
)
_DESTINATION = argument(
    "destination", metavar="DESTINATION", help="oci:…, oci-archive:… or a runtime"
)
_LIGHT = argument(
    "--light-stemcell", metavar="FILE", type=Path, help="write a light stemcell of it (tgz)"
)
_EXPLAIN = switch("--explain", "list what is added for a container, and why")
_REGISTRY = (
    switch("--plain-http", "the registry has no TLS"),
    argument("--ca-file", metavar="FILE", help="certificates to trust the registry by (PEM)"),
)

COMMANDS = (
    Group(
        "stemcell",
        "stemcells as OCI images",
        Command(
            "inspect",
            _command(_inspect),
            "show what a stemcell is: its name, format, root file system, init and layers. Of an "
            "image in a registry only the documents are fetched",
            argument("stemcell", metavar="STEMCELL", help="as below, or a REFERENCE"),
            *(_EXPLAIN, _LIGHT, *_REGISTRY, JSON),
        ),
        Command(
            "convert",
            _command(_convert),
            "make an OCI image of a stemcell; its digest is printed. The same stemcell gives the "
            "same digest on any machine",
            *(_STEMCELL, _DESTINATION, _EXPLAIN, JSON),
        ),
        Command(
            "push",
            _command(_push),
            "send a stemcell, as an OCI image, to a registry. What is there already is not sent",
            *(_STEMCELL, _REFERENCE, _LIGHT, *_REGISTRY, JSON),
        ),
        Command(
            "pull",
            _command(_pull),
            "fetch an image from a registry; every byte is checked against its digest",
            *(_REFERENCE, _DESTINATION, *_REGISTRY, JSON),
        ),
        examples=_EXAMPLES,
    ),
)
