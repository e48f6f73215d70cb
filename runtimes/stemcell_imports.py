"""What the runtimes' imports of stemcells share.

An `image` is hashed while it is read, so its digest is known only at the end. Until then a cheap
key stands for it: a hash of its size and first megabyte. Imports with the same key wait for each
other, so a stemcell is never imported twice at once. Two files may have the same key; only equal
digests make them the same stemcell.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cpi.config.config import Config
from cpi.errors import CloudError, NotSupported
from cpi.host import locks
from cpi.host.folders import entries, size_of
from cpi.host.layout import Layout
from cpi.log import Log
from cpi.model import Garbage, JsonObject

if TYPE_CHECKING:
    from stemcell_convert.convert import Means
    from stemcell_convert.stemcell_manifest import Manifest
    from stemcell_convert.streams import Source

_KEY = re.compile(r"[0-9a-f]{32,128}")  # 64; an older version made others


@dataclass(frozen=True)
class Upload:
    """A stemcell's `image` file. format: a word of recognise; source: its bytes, read once."""

    path: Path
    format: str
    key: str
    source: "Source"
    means: "Means"
    properties: JsonObject

    @cached_property
    def digest(self) -> str:
        """The digest of the file, which is read for that, independently of `source`."""
        from stemcell_convert.convert import opened

        with opened(self.path, self.means.report) as file:
            return file.drain()

    @cached_property
    def manifest(self) -> "Manifest":
        """Which stemcell it is. Raises StemcellError."""
        from stemcell_convert.convert import beside
        from stemcell_convert.stemcell_manifest import of_properties

        return beside(self.path) or of_properties(self.properties)


class StemcellImports:
    """The beginning and the end of one runtime's imports."""

    def __init__(self, runtime: str, config: Config, log: Log) -> None:
        self._runtime = runtime
        self._config = config
        self._log = log

    @contextmanager
    def opened(self, image: Path, properties: JsonObject) -> Iterator[Upload]:
        """Open an `image` to import it within this context.

        Raises NotSupported or CloudError, naming the file, if the stemcell cannot be imported.
        """
        from cpi.disks.foreign_filesystem import mounted
        from cpi.progress import LogReport
        from stemcell_convert.convert import Means, opened
        from stemcell_convert.recognise import TARBALL, recognise
        from stemcell_convert.stemcell_errors import UnsupportedStemcell

        limit = self._config.integer("stemcell_limit") << 20
        means = Means(mounted, limit, LogReport(self._log))
        with _errors(), opened(image, means.report) as source:
            image_format = recognise(source)
            if image_format == TARBALL:
                raise UnsupportedStemcell(
                    f"{image} is a whole stemcell; BOSH gives the CPI the `image` in it "
                    "(bosh upload-stemcell does, and bosh-cpi stemcell convert)"
                )
            beginning = b"%d\n" % os.stat(image).st_size + source.peek()
            key = hashlib.sha256(beginning).hexdigest()
            yield Upload(image, image_format, key, source, means, properties)

    @contextmanager
    def folder(self, key: str) -> Iterator[Path]:
        """Hold the lock of a key (64 hex digits) and yield an empty folder, removed at the end."""
        folder = Layout.of(self._config).imports / f"{self._runtime}-{key}"
        lock = import_lock(self._runtime, key)
        with locks.hold(self._config.text("run_dir"), lock, log=self._log):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _errors() -> Iterator[None]:
    """Translate errors about stemcells into BOSH's."""
    from stemcell_convert.stemcell_errors import (
        RegistryUnreachable,
        StemcellError,
        UnsupportedStemcell,
    )

    try:
        yield
    except UnsupportedStemcell as error:
        raise NotSupported(str(error)) from None
    except StemcellError as error:
        retry = isinstance(error, RegistryUnreachable)
        raise CloudError(str(error), ok_to_retry=retry) from None


def import_lock(runtime: str, key: str) -> str:
    """Return the name of the lock of an import."""
    return f"import-{runtime}-{key}"[:60]


def killed_imports(layout: Layout, runtime: str, *, unprefixed: bool = False) -> Iterator[Garbage]:
    """Yield the folders of a runtime's imports: garbage, unless the lock is held.

    unprefixed: also those without a runtime in their name, as an older version made them.
    """
    for path in entries(layout.imports):
        prefix, _, key = path.name.rpartition("-")
        if (prefix == runtime or (unprefixed and not prefix)) and _KEY.fullmatch(key):
            why = "the import of a stemcell was killed"
            remove = partial(shutil.rmtree, path, ignore_errors=True)
            lock = import_lock(runtime, key) if prefix else f"import-{key[:32]}"
            yield Garbage("import", str(path), why, lock, remove, size=size_of(path))
