"""What `bosh-cpi setup` does to a system, as steps that are shown before they are done."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cpi.host.process import run

ETC = "/etc/bosh-containerd-cpi"
CONFIG = f"{ETC}/cpi.json"


@dataclass(frozen=True)
class Step:
    """One change. title: what it does, in the imperative; act: does it, or raises CPIError."""

    title: str
    act: Callable[[], object]


@dataclass(frozen=True)
class System:
    """The system that is prepared: this one, or another one's files below `root`.

    Nothing is run for another one: no program could tell it from this one.
    """

    root: Path = Path("/")

    @property
    def is_ours(self) -> bool:
        """Tell whether this is the running system."""
        return self.root == Path("/")

    @property
    def has_systemd(self) -> bool:
        """Tell whether systemd runs the system, see sd_booted(3)."""
        return self.path("/run/systemd/system").is_dir()

    def path(self, absolute: str | Path) -> Path:
        """Return where a file of the system is."""
        return self.root / str(absolute).lstrip("/")

    def text(self, absolute: str | Path) -> str:
        """Return a file's text, "" if it cannot be read."""
        try:
            return self.path(absolute).read_text(errors="replace")
        except OSError:
            return ""

    def write(self, absolute: str, text: str, mode: int = 0o644) -> None:
        """Write a file, and the folders that it needs; it is never seen half-written."""
        path = self.path(absolute)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(text)
        fresh.chmod(mode)
        fresh.replace(path)

    def run(self, *argv: str) -> None:
        """Run a program, on this system only. Raises CommandFailed."""
        if self.is_ours:
            run(argv)


def written(system: System, file: str, text: str) -> list[Step]:
    """Return the step that writes a file, if it has another content."""
    if system.text(file) == text:
        return []
    return [Step(f"write {file}", lambda: system.write(file, text))]
