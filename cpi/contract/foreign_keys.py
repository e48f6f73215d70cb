"""Keys of other CPIs in cloud_properties: which have a counterpart here.

Cloud-configs are shared between infrastructures, and a CPI in Go ignores what it does not know.
"""

from __future__ import annotations

from typing import NamedTuple

from cpi import validate
from cpi.contract.values import MAX_MIB
from cpi.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpi.errors import CPIError
    from cpi.log import Log

_MAX_NAMED = 20  # keys in one line of the log


class Counterpart(NamedTuple):
    """A key of other CPIs that means what one of ours means.

    field: where the value is, if theirs is an object. factor: how many of our units theirs is.
    """

    theirs: str
    ours: str
    field: str = ""
    factor: int = 1

    @property
    def shown(self) -> str:
        """Return their key for a message."""
        return f"{self.theirs}.{self.field}" if self.field else self.theirs


# In order: where a document has two for one of ours, the first counts. Units and names as in BOSH's
# documentation of each CPI; docs/cloud-properties.md says which. `root_disk: {size}` is not among
# them: it is in MiB or in GB, depending on the CPI.
OF_VMS = (
    Counterpart("ram", "memory"),
    Counterpart("cpus", "cpu"),
    Counterpart("ephemeral_disk", "ephemeral_disk", field="size"),
    Counterpart("disk", "ephemeral_disk"),
    Counterpart("system_disk", "root_disk", field="size"),
    Counterpart("root_disk_size_gb", "root_disk", factor=1024),
)

# Ours are sizes, and objects in other CPIs.
_OBJECTS = ("ephemeral_disk", "root_disk")

# They resemble one of ours, and are no typos of it.
_LOOKALIKES = ("ephemeral_disk_type", "machine_type", "root_disk_type", "use_root_disk")


class ForeignKeys:
    """What is done with keys that are not ours.

    strict: refuse them all. translated and ignored: what was met so far, as (where, key) and, for
    translated ones, ours.
    """

    def __init__(self, log: Log, *, strict: bool = False) -> None:
        self.translated: list[tuple[str, str, str]] = []
        self.ignored: list[tuple[str, str]] = []
        self.log = log
        self._strict = strict

    def ours(
        self,
        where: str,
        given: Mapping[str, object],
        known: Mapping[str, object],
        error: type[CPIError],
        counterparts: tuple[Counterpart, ...] = (),
    ) -> dict[str, object]:
        """Return a document with our keys only, and log what became of the others.

        Raises `error` for likely typos, with `strict` for every key that is not ours, and for a
        value of a counterpart that cannot be used.
        """
        unknown = [key for key in given if key not in known]
        refused = unknown if self._strict else [key for key in unknown if _is_typo(key, known)]
        validate.known_keys(where, dict.fromkeys((*refused, *known)), known, error)
        own = {key: value for key, value in given.items() if key in known}
        if self._strict:
            return own
        translated = self._translate(where, given, own, counterparts, error)
        taken = {part.theirs for part in translated}
        own_names = [key for key, value in own.items() if value is not None]
        ignored = [key for key in given if key not in taken and key not in own_names]
        ignored = [key for key in ignored if given[key] is not None]
        self.translated += [(where, part.shown, part.ours) for part in translated]
        self.ignored += [(where, key) for key in ignored]
        self._report(where, translated, ignored)
        return own

    def _translate(
        self,
        where: str,
        given: Mapping[str, object],
        own: dict[str, object],
        counterparts: tuple[Counterpart, ...],
        error: type[CPIError],
    ) -> list[Counterpart]:
        """Put the values of counterparts into `own`, where it has none; return those used."""
        for key in _OBJECTS:
            if isinstance(own.get(key), dict):
                own[key] = None
        used = []
        for part in counterparts:
            value = given.get(part.theirs)
            if part.field:
                value = value.get(part.field) if isinstance(value, dict) else None
            if value is None or own.get(part.ours) is not None:
                continue
            size = validate.number(0, MAX_MIB)(f"{where}.{part.shown}", value, error)
            own[part.ours] = int(size * part.factor) if size == int(size) else size * part.factor
            used.append(part)
        return used

    def _report(self, where: str, translated: list[Counterpart], ignored: list[str]) -> None:
        if translated:
            pairs = ", ".join(f"{part.shown} as {part.ours}" for part in translated)
            self.log.info(f"{where}: took {pairs}")
        if ignored:
            names = ", ".join(shown(key, 60) for key in ignored[:_MAX_NAMED])
            more = ", …" * (len(ignored) > _MAX_NAMED)
            self.log.info(f"{where}: ignored unknown keys: {names}{more}")


def _is_typo(key: str, known: Mapping[str, object]) -> bool:
    """Tell whether a key is rather a mistyped one of ours than one of another CPI."""
    names = (*_LOOKALIKES, *(part.theirs for part in OF_VMS))
    return key not in names and bool(validate.lookalike(key, known))
