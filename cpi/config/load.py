"""Loads the configuration: the file given by `-c`, checked by all declared keys.

Every key is declared once, beside this or in the keys of its runtime, and docs/configuration.md is
made from that.
"""

from __future__ import annotations

from cpi import documents
from cpi.config import general_keys
from cpi.config.config import Config
from runtimes import catalog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpi.config.key import Key


def declared() -> dict[str, Key]:
    """Return every key by name: the general ones, then the runtimes'."""
    return {key.name: key for key in (*general_keys.KEYS, *catalog.keys())}


def load_config(path: str | None) -> Config:
    """Read the configuration file; None gives the defaults.

    Raises CPIError naming the file, and the key or the reason.
    """
    if path is None:
        return config_of({})
    return config_of(documents.load_file(path), documents.named(path))


def config_of(document: Mapping[str, object], source: str = "configuration") -> Config:
    """Check a configuration document. Raises CPIError naming `source` and the keys."""
    return Config.of(document, declared(), source)
